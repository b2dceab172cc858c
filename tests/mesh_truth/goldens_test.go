package meshtruth

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/test"
)

var update = flag.Bool("update", false, "write tests/istio/goldens anew instead of comparing")

const goldens = "../istio/goldens"

// The contracts stand in the edge's configuration three times; the goldens say only where.
var contracts = regexp.MustCompile(`proto_descriptor_bin: (\S+)`)

const contractsMark = "@contracts"

func forUpstreamEnvoy(t test.Failer) {
	// Envoy without Istio's additions lacks these two filters.
	test.SetForTest(t, &features.MetadataExchange, false)
	test.SetForTest(t, &features.ALPNFilter, false)
}

// dump is the Envoy configuration that istiod makes for each proxy, by the name of its golden. The edge is that of
// `dev`, which needs no certificate; TestTheEdgeWithACertificateDecidesAsTheOneWithout holds the other one.
func dump(t *testing.T, prod, dev shipped) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	ds, pods := control(t, prod, 2)
	for _, service := range services {
		found[service] = configuration(t, ds, pods.of(t, service, 0), prod)
	}
	ds, pods = control(t, dev, 2)
	found["edge"] = configuration(t, ds, pods.of(t, edgeAccount, 0), dev)
	return found
}

// control is istiod over the shipped YAML and its running pods.
func control(t *testing.T, from shipped, replicas int) (*xds.FakeDiscoveryServer, running) {
	t.Helper()
	forUpstreamEnvoy(t)
	pods := from.running(t, replicas)
	return xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		KubernetesObjects: pods.objects,
		ConfigString:      from.istio(),
		MeshConfig:        mesh.DefaultMeshConfig(),
	}), pods
}

func configuration(t *testing.T, ds *xds.FakeDiscoveryServer, of pod, from shipped) []byte {
	t.Helper()
	proxy := ds.SetupProxy(of.proxy())
	clusters := keep(ds.Clusters(proxy), func(c *cluster.Cluster) bool { return ours(c.Name) })
	listeners := keep(ds.Listeners(proxy), func(l *listener.Listener) bool {
		// The rest is the same for every mesh: plain connections to wherever they go.
		return l.Name != "virtualOutbound"
	})
	endpoints := keep(ds.Endpoints(proxy), func(e *endpoint.ClusterLoadAssignment) bool { return ours(e.ClusterName) })
	parts := map[string]json.RawMessage{
		"clusters":  list(t, clusters),
		"routes":    list(t, keep(ds.Routes(proxy), func(*route.RouteConfiguration) bool { return true })),
		"listeners": list(t, listeners),
		"endpoints": list(t, endpoints),
	}
	raw, err := json.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	if set := contracts.FindStringSubmatch(from.istio()); set != nil {
		raw = bytes.ReplaceAll(raw, []byte(set[1]), []byte(contractsMark))
	}
	made, err := tidy(raw)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// Calls; metrics and what stands outside of the mesh have no policy.
var ours = regexp.MustCompile(`^(in|out)bound\|808[1-4]\|`).MatchString

func keep[T any](all []T, wanted func(T) bool) []T {
	var kept []T
	for _, one := range all {
		if wanted(one) {
			kept = append(kept, one)
		}
	}
	return kept
}

func list[T proto.Message](t *testing.T, all []T) json.RawMessage {
	t.Helper()
	made := []json.RawMessage{}
	for _, one := range all {
		text, err := protojson.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, text)
	}
	raw, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// unlikeGoldens says which goldens differ, and from which line on.
func unlikeGoldens(made map[string][]byte) []string {
	var problems []string
	for name, now := range made {
		file := filepath.Join(goldens, name+".json")
		before, err := os.ReadFile(file)
		if err != nil {
			problems = append(problems, err.Error())
		} else if !bytes.Equal(before, now) {
			problems = append(problems, fmt.Sprintf("%s.json: %s", name, firstDifference(before, now)))
		}
	}
	return problems
}

func firstDifference(before, now []byte) string {
	old, new := strings.Split(string(before), "\n"), strings.Split(string(now), "\n")
	for i := range old {
		if i >= len(new) || old[i] != new[i] {
			there := ""
			if i < len(new) {
				there = new[i]
			}
			return fmt.Sprintf("line %d was %q, is %q", i+1, old[i], there)
		}
	}
	return fmt.Sprintf("%d lines more", len(new)-len(old))
}

func TestTheGoldensAreWhatIstiodMakesOfTheShippedFiles(t *testing.T) {
	made := dump(t, render(t, prod), render(t, dev))
	if *update {
		for name, text := range made {
			if err := os.WriteFile(filepath.Join(goldens, name+".json"), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, problem := range unlikeGoldens(made) {
		t.Errorf("%s (make mesh-goldens writes them anew)", problem)
	}
}

// gatewayConfig is the configuration of the edge, as far as its listeners and routes go.
type gatewayConfig struct {
	Listeners []struct {
		Name         string
		FilterChains []struct {
			Filters []struct{ TypedConfig map[string]any }
		}
	}
	Routes []struct {
		Name         string
		VirtualHosts []map[string]any
	}
}

func edgeOfOverlay(t *testing.T, from shipped) gatewayConfig {
	t.Helper()
	ds, pods := control(t, from, 1)
	var found gatewayConfig
	if err := json.Unmarshal(configuration(t, ds, pods.of(t, edgeAccount, 0), from), &found); err != nil {
		t.Fatal(err)
	}
	return found
}

// decisions is all that the edge decides by on a port: its connections with their filters, times and refusals, and its
// host with its routes. Not which pages may call, and what merely bears the name of the port.
func decisions(t *testing.T, from shipped, listener, routes string) []byte {
	t.Helper()
	all := edgeOfOverlay(t, from)
	var found []any
	for _, one := range all.Listeners {
		if one.Name == listener {
			manager := one.FilterChains[0].Filters[0].TypedConfig
			for _, name := range []string{"rds", "statPrefix"} {
				delete(manager, name)
			}
			found = append(found, manager)
		}
	}
	for _, one := range all.Routes {
		if one.Name == routes {
			host := one.VirtualHosts[0]
			delete(host, "name")
			delete(host, "domains")
			settings := host["typedPerFilterConfig"].(map[string]any)
			delete(settings["envoy.filters.http.cors"].(map[string]any), "allowOriginStringMatch")
			found = append(found, host)
		}
	}
	if len(found) != 2 {
		t.Fatalf("there is no %s with %s", listener, routes)
	}
	text, err := json.MarshalIndent(found, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func decisionsOfDev(t *testing.T) []byte {
	return decisions(t, render(t, dev), "0.0.0.0_80", "http.80")
}

func decisionsOfProd(t *testing.T, from shipped) []byte {
	return decisions(t, from, "0.0.0.0_443", "https.443.https.dinemesh.istio-ingress")
}

func TestTheEdgeWithACertificateDecidesAsTheOneWithout(t *testing.T) {
	plain := decisionsOfDev(t)
	from := render(t, prod)
	if certified := decisionsOfProd(t, from); !bytes.Equal(plain, certified) {
		t.Error(firstDifference(plain, certified))
	}
	// It would be seen if it did not.
	for _, one := range []struct{ document, old, new string }{
		{edgeFilter, "path_with_escaped_slashes_action: REJECT_REQUEST", "path_with_escaped_slashes_action: KEEP_UNCHANGED"},
		{edgeFilter, "prefix: x-envoy-", "prefix: x-nobody-"},
		{edgeFilter, "request_headers_timeout: 2s", "request_headers_timeout: 20s"},
		{originsFilter, "allow_methods: GET, POST, PATCH", "allow_methods: GET"},
	} {
		if bytes.Equal(plain, decisionsOfProd(t, from.edited(t, one.document, one.old, one.new))) {
			t.Errorf("%s instead of %s is not seen", one.new, one.old)
		}
	}
}

// Who comes without a certificate's protection is sent away from every path, before anything is decided.
func TestThePlainPortOfProdOnlyShowsTheWay(t *testing.T) {
	redirects := 0
	for _, one := range edgeOfOverlay(t, render(t, prod)).Routes {
		if one.Name != "http.80" {
			continue
		}
		for _, host := range one.VirtualHosts {
			redirects++
			if host["requireTls"] != "ALL" {
				t.Errorf("%v answers plain calls", host["domains"])
			}
		}
	}
	if redirects == 0 {
		t.Error("nothing listens on the plain port")
	}
}
