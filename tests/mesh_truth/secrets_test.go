package meshtruth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// authority is what istio-agent and istiod's CA are together: it gives each Envoy a certificate for the service account
// that its node names.
type authority struct {
	secret.UnimplementedSecretDiscoveryServiceServer
	address string
	root    []byte
	key     *ecdsa.PrivateKey
	cert    *x509.Certificate

	mu     sync.Mutex
	failed []string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, cert, root := certify(nil, nil, "")
	made := &authority{root: root, key: key, cert: cert}
	listening, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	made.address = listening.Addr().String()
	server := grpc.NewServer()
	secret.RegisterSecretDiscoveryServiceServer(server, made)
	go func() { _ = server.Serve(listening) }()
	t.Cleanup(server.Stop)
	return made
}

// StreamSecrets answers each new question once; Envoy asks again only for what it does not have.
func (a *authority) StreamSecrets(stream secret.SecretDiscoveryService_StreamSecretsServer) error {
	var node *core.Node
	for {
		asked, err := stream.Recv()
		if err != nil {
			return err
		}
		if asked.Node != nil {
			node = asked.Node
		}
		if asked.ErrorDetail != nil {
			a.mu.Lock()
			a.failed = append(a.failed, asked.ErrorDetail.Message)
			a.mu.Unlock()
			continue
		}
		if asked.ResponseNonce != "" {
			continue
		}
		answer := &discovery.DiscoveryResponse{VersionInfo: "1", Nonce: "1", TypeUrl: asked.TypeUrl}
		for _, name := range asked.ResourceNames {
			one, err := anypb.New(a.secret(name, node))
			if err != nil {
				return err
			}
			answer.Resources = append(answer.Resources, one)
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func (a *authority) secret(name string, node *core.Node) proto.Message {
	if name == "ROOTCA" {
		return &tls.Secret{Name: name, Type: &tls.Secret_ValidationContext{
			ValidationContext: &tls.CertificateValidationContext{TrustedCa: inline(a.root)},
		}}
	}
	fields := node.Metadata.Fields
	key, cert := a.pair("spiffe://cluster.local/ns/" + fields["NAMESPACE"].GetStringValue() +
		"/sa/" + fields["SERVICE_ACCOUNT"].GetStringValue())
	return &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: inline(cert), PrivateKey: inline(key),
	}}}
}

func (a *authority) pair(identity string) (key, cert []byte) {
	made, _, cert := certify(a.key, a.cert, identity)
	der, err := x509.MarshalECPrivateKey(made)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), cert
}

// certify makes a key and a certificate for it; without an identity, one that signs others.
func certify(
	by *ecdsa.PrivateKey, parent *x509.Certificate, identity string,
) (*ecdsa.PrivateKey, *x509.Certificate, []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"cluster.local"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if identity == "" {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage = x509.KeyUsageCertSign
		by, parent = key, template
	} else {
		uri, err := url.Parse(identity)
		if err != nil {
			panic(err)
		}
		template.URIs = []*url.URL{uri}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func inline(text []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: text}}
}
