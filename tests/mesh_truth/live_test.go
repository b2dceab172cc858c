package meshtruth

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
)

// live is istiod as real Envoys see it.
func live(t *testing.T, from shipped, pods running, mtls bool) (*xds.FakeDiscoveryServer, string) {
	t.Helper()
	forUpstreamEnvoy(t)
	config := mesh.DefaultMeshConfig()
	config.EnableAutoMtls.Value = mtls
	address := make(chan string, 1)
	ds := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		KubernetesObjects: pods.objects,
		// Telemetry asks for a filter that only Istio's own Envoy has. Sidecars are those of the test: without iptables,
		// listeners are bound to addresses.
		ConfigString: from.istio("Telemetry"),
		MeshConfig:   config,
		ListenerBuilder: func() (net.Listener, error) {
			listening, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				address <- listening.Addr().String()
			}
			return listening, err
		},
	})
	return ds, <-address
}

// outlet is where the Envoy of a caller listens for calls to a service.
func outlet(caller, service int) string { return fmt.Sprintf("127.0.%d.1:%d", 50+caller, 8081+service) }

// unredirected is the Sidecar of a pod for a machine without iptables. `egress`: the services that it may know.
func unredirected(number int, of pod, backend string, egress ...string) string {
	var out strings.Builder
	fmt.Fprintf(&out, `apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: %s, namespace: %s}
spec:
  workloadSelector: {labels: {app.kubernetes.io/name: %s}}
`, of.service, of.namespace, of.service)
	if backend != "" {
		fmt.Fprintf(&out, `  ingress:
    - port: {number: %d, protocol: GRPC, name: grpc}
      bind: %s
      captureMode: NONE
      defaultEndpoint: %s
`, port(of.service), of.address, backend)
	}
	out.WriteString("  egress:\n")
	for _, service := range egress {
		host, at := split(outlet(number, index(service)))
		fmt.Fprintf(&out, `    - port: {number: %d, protocol: GRPC, name: grpc-%s}
      bind: %s
      captureMode: NONE
      hosts: [dinemesh/%s.dinemesh.svc.cluster.local]
`, at, service, host, service)
	}
	return out.String()
}

// index: services are in the order of their ports, from 8081 on.
func index(service string) int { return slices.Index(services, service) }

func port(service string) int { return 8081 + index(service) }

func authorityOf(service string) string {
	return fmt.Sprintf("%s.dinemesh.svc.cluster.local:%d", service, port(service))
}

// edge has the account of the gateway, and takes calls as a sidecar does.
var edge = pod{
	service: "edge", namespace: edgeNamespace, account: edgeAccount, name: "edge-0", address: "127.0.41.1",
	labels: map[string]string{"app.kubernetes.io/name": "edge"},
}

// stranger is a pod of another namespace, with a certificate of the same mesh.
var stranger = pod{
	service: "stranger", namespace: "elsewhere", account: "default", name: "stranger-0", address: "127.0.40.1",
	labels: map[string]string{"app.kubernetes.io/name": "stranger"},
}

func TestBetweenRealSidecarsExactlyTheEdgesOfTheDesignAreOpen(t *testing.T) {
	for _, problem := range unlikeTheDesign(t, render(t, prod), t.Logf) {
		t.Error(problem)
	}
}

// unlikeTheDesign calls every RPC of every service as everybody, between real sidecars with mTLS, and says where the answer
// is not that of the design; then without a certificate, and with a token that is none.
func unlikeTheDesign(t *testing.T, from shipped, tell func(string, ...any)) []string {
	t.Helper()
	var problems []string
	wrong := func(format string, words ...any) { problems = append(problems, fmt.Sprintf(format, words...)) }
	methods := methodsOf(t, from)
	// What a caller's own proxy would keep back is let through: only what the other side refuses is refused.
	for _, one := range from {
		switch one.kind {
		case "VirtualService", "DestinationRule", "Sidecar", "EnvoyFilter", "Gateway":
			from = from.without(one.String())
		}
	}
	pods := from.running(t, 1)
	callers := []pod{edge, stranger}
	for _, service := range services {
		callers = append(callers, pods.of(t, service, 0))
	}
	backends := map[string]string{}
	var reached sync.Map
	for _, service := range services {
		backends[service] = serve(t, "127.0.0.1:0", func(_ context.Context, method string) error {
			reached.Store(service+method, true)
			return nil
		})
	}
	for i, one := range callers {
		from = from.with(t, unredirected(i, one, backends[one.service], services...))
	}
	_, istiod := live(t, from, pods, true)
	secrets := newAuthority(t)
	var running []*sidecar
	for _, one := range callers {
		running = append(running, start(t, one, istiod, secrets.address))
	}
	for _, one := range running {
		one.ready()
		one.tookEverything()
	}

	calls := 0
	for i, one := range callers {
		counts := map[codes.Code]int{}
		for _, service := range services {
			over := caller(t, outlet(i, index(service)), authorityOf(service))
			for _, method := range methods[service] {
				want := codes.PermissionDenied
				if open(one.service, service, method) {
					want = codes.OK
				}
				reached.Delete(service + method)
				got, said := call(over, method)
				if got != want {
					wrong("%s -> %s%s: %s (%s), not %s", one.service, service, method, got, said, want)
				}
				if _, arrived := reached.Load(service + method); arrived != (want == codes.OK) {
					wrong("%s -> %s%s: arrived: %t", one.service, service, method, arrived)
				}
				counts[got]++
				calls++
			}
		}
		tell("%-11s %v", one.service, counts)
	}
	tell("%d calls: %d callers, every RPC of %d services, health and reflection of each", calls, len(callers), len(services))

	for _, service := range services {
		at := fmt.Sprintf("%s:%d", pods.of(t, service, 0).address, port(service))
		// The door is there; it is closed to those who do not say who they are.
		if there, err := net.Dial("tcp", at); err != nil {
			t.Fatal(err)
		} else {
			_ = there.Close()
		}
		if got, said := call(caller(t, at, authorityOf(service)), methods[service][0]); got != codes.Unavailable {
			wrong("%s took a plain call: %s (%s)", service, got, said)
		}
	}
	over := caller(t, outlet(2+index("reservation"), index("deposit")), authorityOf("deposit"))
	if got, said := call(over, createDeposit, "authorization", "Bearer nonsense"); got != codes.Unauthenticated {
		wrong("a token that is none was taken: %s (%s)", got, said)
	}
	return problems
}

const createDeposit = "/dinemesh.deposit.v1.DepositService/CreateDeposit"

// open is the table of the design, section 1 and 2, in its own words.
func open(caller, service, method string) bool {
	_, name, _ := strings.Cut(method[1:], "/")
	switch caller {
	case "reservation":
		return service == "deposit" && (name == "CreateDeposit" || method == health)
	case "edge":
		switch service {
		case "deposit":
			return name == "GetDeposit" || name == "ListDeposits"
		case "reservation":
			return true
		default:
			return strings.HasPrefix(method, "/dinemesh.")
		}
	}
	return false
}

func TestAnEditedDestinationRuleReachesEnvoyUnderLoad(t *testing.T) {
	shipped := render(t, prod)
	pods := shipped.running(t, 2)
	reservation := pods.of(t, "reservation", 0)
	from := shipped.with(t, unredirected(0, reservation, "", "deposit"))
	ds, istiod := live(t, from, pods, false)
	for n := range 2 {
		of := pods.of(t, "deposit", n)
		serve(t, fmt.Sprintf("%s:%d", of.address, port("deposit")), func(ctx context.Context, _ string) error {
			if asked, _ := metadata.FromIncomingContext(ctx); len(asked.Get("x-slow")) > 0 {
				time.Sleep(500 * time.Millisecond)
			}
			return nil
		})
	}
	envoy := start(t, reservation, istiod, istiod)
	envoy.ready()
	over := caller(t, outlet(0, index("deposit")), authorityOf("deposit"))
	if code, said := call(over, createDeposit); code != codes.OK {
		t.Fatalf("%s: %s", code, said)
	}
	const together = 150
	served, refused := burst(over, together)
	t.Logf("as shipped: %d at once, %d served, %d refused", together, served, refused)
	if served != 128 || refused != together-128 {
		t.Errorf("the limit of 128 let %d of %d through and refused %d", served, together, refused)
	}

	var calls, failed atomic.Int64
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				calls.Add(1)
				if code, said := call(over, createDeposit); code != codes.OK {
					failed.Add(1)
					t.Errorf("a call failed: %s: %s", code, said)
				}
			}
		})
	}
	const cluster = "outbound|8082||deposit.dinemesh.svc.cluster.local"
	rule := "DestinationRule reservation-to-deposit.dinemesh"
	edited := shipped.edited(t, rule, "http2MaxRequests: 128", "http2MaxRequests: 200")
	for calls.Load() < 20 {
		time.Sleep(5 * time.Millisecond)
	}
	before := calls.Load()
	began := time.Now()
	apply(t, ds, edited, rule)
	for envoy.most(cluster) != "200" {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("Envoy still has %s", envoy.most(cluster))
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(began)
	served, refused = burst(over, together)
	t.Logf("reached Envoy after %s; then %d at once: %d served, %d refused", took.Round(time.Millisecond), together, served, refused)
	if served != together {
		t.Errorf("the new limit is not in force: %d of %d served", served, together)
	}

	close(stop)
	workers.Wait()
	t.Logf("calls while it was edited: %d, failed: %d", calls.Load(), failed.Load())
	if calls.Load() < before+20 {
		t.Error("there was no load")
	}
	envoy.tookEverything()
}

// burst sends slow calls at once and counts what came of them.
func burst(over *grpc.ClientConn, together int) (served, refused int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for range together {
		all.Go(func() {
			code, _ := call(over, createDeposit, "x-slow", "1")
			mu.Lock()
			defer mu.Unlock()
			if code == codes.OK {
				served++
			} else if code == codes.Unavailable {
				refused++
			}
		})
	}
	all.Wait()
	return served, refused
}

func apply(t *testing.T, ds *xds.FakeDiscoveryServer, from shipped, which string) {
	t.Helper()
	parsed, _, err := crd.ParseInputs(from.only(which))
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range parsed {
		current := ds.Store().Get(one.GroupVersionKind, one.Name, one.Namespace)
		one.ResourceVersion = current.ResourceVersion
		if _, err := ds.Store().Update(one); err != nil {
			t.Fatal(err)
		}
	}
}
