package meshtruth

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"testing"
)

// mutant is one mistake in the shipped YAML, and what has to turn red by it. Goldens differ by every mistake that reaches
// Envoy; what is named here says in words what is wrong.
type mutant struct {
	name, document, old, new string
	red                      string
}

const (
	misspelt  = "strict decode"
	refused   = "Istio's webhook"
	suspect   = "analyzers"
	promises  = "promises"
	matrix    = "matrix"
	different = "goldens"
)

const (
	rule       = "DestinationRule reservation-to-deposit.dinemesh"
	ways       = "VirtualService reservation-to-deposit.dinemesh"
	deposits   = "AuthorizationPolicy deposit.dinemesh"
	reserves   = "cluster.local/ns/dinemesh/sa/reservation"
	edgeFilter = "EnvoyFilter dinemesh.istio-ingress"

	originsFilter = "EnvoyFilter dinemesh-origins.istio-ingress"
)

var mutants = []mutant{
	{"a misspelt field", rule, "maxEjectionPercent: 50", "maxEjectionPercents: 50", misspelt},
	{"no share of ejections", rule, "      maxEjectionPercent: 50\n", "", promises},
	{"ejections off", rule, "consecutiveGatewayErrors: 5", "consecutiveGatewayErrors: 0", promises},
	{"ejections by any error", rule, "consecutive5xxErrors: 0", "consecutive5xxErrors: 5", promises},
	{"a limit of everything", rule, "        http2MaxRequests: 128\n", "", promises},
	{"no word on localities", rule, "enabled: false", "enabled: true", promises},
	{"a rule for another host", rule, "host: deposit.dinemesh", "host: deposits.dinemesh", suspect},
	{"a rule for nobody's pods", rule, "app.kubernetes.io/name: reservation", "app.kubernetes.io/name: reservations", promises},
	{"an interval that is none", rule, "interval: 1s", "interval: often", refused},
	{"the retries of a charge left out", ways, "    retries:\n      attempts: 0\n", "", promises},
	{"a charge repeated", ways, "attempts: 0", "attempts: 2", promises},
	{"a charge for longer than its caller waits", ways, "timeout: 3s", "timeout: 5s", promises},
	{"a route to another host", ways, "  hosts:\n  - deposit.dinemesh.svc.cluster.local\n",
		"  hosts:\n  - deposits.dinemesh.svc.cluster.local\n", promises},
	{"a path misspelt", ways, "exact: /dinemesh.deposit.v1.DepositService/CreateDeposit",
		"exact: /dinemesh.deposit.v1.DepositService/CreateDeposits", promises},
	{"a copy of each charge to nobody", ways, "timeout: 3s", "timeout: 3s\n    mirror: {host: nowhere.dinemesh.svc.cluster.local}", suspect},
	{"a charge that goes to nobody", ways, "        host: deposit.dinemesh.svc.cluster.local\n        port:\n          number: 8082\n    timeout: 3s",
		"        host: deposits.dinemesh.svc.cluster.local\n        port:\n          number: 8082\n    timeout: 3s", suspect},
	{"a charge that goes to somebody else", ways, "        host: deposit.dinemesh.svc.cluster.local\n        port:\n          number: 8082\n    timeout: 3s",
		"        host: history.dinemesh.svc.cluster.local\n        port:\n          number: 8083\n    timeout: 3s", promises},
	{"a charge that goes to another port", ways, "          number: 8082\n    timeout: 3s", "          number: 9082\n    timeout: 3s", promises},
	{"no time to connect in", rule, "        connectTimeout: 1s\n", "", promises},
	{"a peer that vanished is never missed", rule, "        tcpKeepalive:\n          interval: 5s\n          probes: 3\n          time: 20s\n", "", promises},
	{"calls in turn", rule, "simple: LEAST_REQUEST", "simple: ROUND_ROBIN", promises},
	{"a storm of repetitions", rule, "        maxRetries: 8\n", "", promises},
	{"refused while it connects", rule, "        http1MaxPendingRequests: 1024\n", "        http1MaxPendingRequests: 1\n", promises},
	{"nobody looks who may come back", rule, "interval: 1s", "interval: 60s", promises},
	{"a word that is no reason to try again", ways, "perTryTimeout: 1s\n      retryOn: connect-failure,",
		"perTryTimeout: 1s\n      retryOn: connection-failure,", refused},
	{"reservation may do everything", deposits, "        paths:\n        - /dinemesh.deposit.v1.DepositService/CreateDeposit\n" +
		"        - /grpc.health.v1.Health/Check\n", "", matrix},
	{"everybody may do what reservation may", deposits, reserves, "'*'", matrix},
	{"a name that nobody has", deposits, reserves, "cluster.local/ns/dinemesh/sa/reservations", matrix},
	{"a policy for nobody's pods", deposits, "app.kubernetes.io/name: deposit", "app.kubernetes.io/name: deposits", suspect},
	{"denied what was allowed", deposits, "action: ALLOW", "action: DENY", matrix},
	{"plain connections taken", "PeerAuthentication dinemesh.dinemesh", "mode: STRICT", "mode: PERMISSIVE", matrix},
	{"an edge for nobody's pods", "Gateway dinemesh.istio-ingress", "istio: ingressgateway", "istio: gateway", suspect},
	{"routes for a gateway that does not exist", "VirtualService dinemesh.istio-ingress", "gateways:\n  - dinemesh\n",
		"gateways:\n  - dinemeshes\n", suspect},
	{"filters for nobody's pods", edgeFilter, "      istio: ingressgateway", "      istio: gateway", promises},
	{"a filter at another port", "EnvoyFilter reservation-to-deposit.dinemesh", "portNumber: 8082", "portNumber: 8083", promises},
	{"a Service that selects nobody", "Service deposit.dinemesh", "  selector:\n    app.kubernetes.io/name: deposit",
		"  selector:\n    app.kubernetes.io/name: deposits", promises},
	{"a Service whose port leads nowhere", "Service deposit.dinemesh", "targetPort: grpc\n", "targetPort: grcp\n", promises},
	{"a port without a protocol", "Service deposit.dinemesh", "- appProtocol: grpc\n    name: grpc\n", "- name: calls\n", suspect},
	{"a misspelt field of Kubernetes", "Service deposit.dinemesh", "  selector:", "  selectors:", misspelt},
}

func TestEachMistakeInTheYAMLTurnsSomethingRed(t *testing.T) {
	from := render(t, prod)
	plain := render(t, dev)
	for name, all := range map[string][]string{
		misspelt: from.misspelt(), refused: from.refused(), suspect: from.analyzed(t),
		promises: broken(t, dump(t, from, plain)), different: unlikeGoldens(dump(t, from, plain)),
	} {
		if len(all) > 0 {
			t.Fatalf("%s: red without any mistake: %v", name, all)
		}
	}
	for _, one := range mutants {
		t.Run(one.name, func(t *testing.T) {
			mistaken := from.edited(t, one.document, one.old, one.new)
			red := map[string][]string{}
			note := func(check string, problems []string) {
				if len(problems) > 0 {
					red[check] = problems
				}
			}
			note(misspelt, mistaken.misspelt())
			note(refused, mistaken.refused())
			if len(red[misspelt]) == 0 && len(red[refused]) == 0 {
				note(suspect, mistaken.analyzed(t))
				dumped := dump(t, mistaken, edgeOf(t, plain, mistaken, one))
				note(promises, broken(t, dumped))
				note(different, unlikeGoldens(dumped))
				if one.red == matrix {
					note(matrix, unlikeTheDesign(t, mistaken, func(string, ...any) {}))
				}
			}
			if len(red[one.red]) == 0 {
				t.Errorf("%s stayed green; red: %v", one.red, red)
			}
			var names []string
			for check, problems := range red {
				names = append(names, fmt.Sprintf("%s (%d: %.140s)", check, len(problems), problems[0]))
			}
			sort.Strings(names)
			t.Logf("red: %s", strings.Join(names, "; "))
		})
	}
}

// edgeOf makes the same mistake in the edge without a certificate.
func edgeOf(t *testing.T, plain, mistaken shipped, one mutant) shipped {
	t.Helper()
	if one.document == "Gateway dinemesh.istio-ingress" {
		return plain
	}
	return plain.with(t, mistaken.only(one.document))
}

// broken is what the policy promises and istiod's configuration does not keep.
func broken(t *testing.T, dumped map[string][]byte) []string {
	t.Helper()
	var problems []string
	holds := func(is bool, what string) {
		if !is {
			problems = append(problems, what)
		}
	}
	reservation, edge := parse(t, dumped["reservation"]), parse(t, dumped["edge"])
	const deposit = "outbound|8082||deposit.dinemesh.svc.cluster.local"
	to := reservation.cluster(deposit)
	holds(to.Outlier.Consecutive == 5 && to.Outlier.Enforcing == 100, "five gateway errors eject")
	holds(to.Ejects && to.Outlier.Any == 0, "other errors do not")
	holds(to.Outlier.Share == 50, "one of two may be ejected")
	holds(!to.Panic, "nothing goes to the ejected")
	holds(len(to.Most) == 1 && to.Most[0] == 128, "128 charges at once")
	all, spare := reservation.hosts(deposit)
	holds(all == 2 && spare == 0, "reservation knows two instances, whatever zone it is in")
	charge := reservation.route("charge")
	holds(len(charge.Route.RetryPolicy) == 0, "nobody repeats a charge")
	holds(charge.Route.Timeout == "3s", "a charge has 3 s")
	holds(charge.Route.Cluster == deposit, "a charge goes to deposit")
	holds(to.Connect == "1s" && to.Balance == "LEAST_REQUEST" && to.Sweep == "1s", "connecting, choosing and looking again")
	holds(to.Keepalive == 20, "a peer that vanished is missed")
	holds(to.Pending == 1024 && to.Repetitions == 8, "what waits for a connection, and repetitions")
	holds(charge.Match.Path == createDeposit, "the route of a charge is that of CreateDeposit")
	reads := string(reservation.route("reads").Route.RetryPolicy)
	holds(strings.Contains(reads, "gateway-error,deadline-exceeded"), "reads are repeated")
	holds(reservation.before("no deadline of others", "envoy.filters.http.router"), "no caller's own deadline counts")
	for _, service := range services {
		name := fmt.Sprintf("outbound|%d||%s.dinemesh.svc.cluster.local", port(service), service)
		all, _ := edge.hosts(name)
		holds(all == 2, service+" has two instances")
		holds(!edge.cluster(name).Ejects, "the edge ejects nobody of "+service)
	}
	holds(edge.before("envoy.filters.http.grpc_json_transcoder", "envoy.filters.http.rbac"), "translation before roles")
	return problems
}

type parsed struct {
	Clusters []struct {
		Name             string
		OutlierDetection *outlier
		CommonLb         struct{ HealthyPanicThreshold json.RawMessage } `json:"commonLbConfig"`
		Circuit          struct {
			Thresholds []struct{ MaxRequests, MaxPendingRequests, MaxRetries int }
		} `json:"circuitBreakers"`
		ConnectTimeout string
		LbPolicy       string
		Upstream       struct {
			TcpKeepalive struct{ KeepaliveTime int }
		} `json:"upstreamConnectionOptions"`
	}
	Routes []struct {
		VirtualHosts []struct {
			Domains []string
			Routes  []routed
		}
	}
	Endpoints []struct {
		ClusterName string
		Endpoints   []struct {
			Priority    int
			LbEndpoints []json.RawMessage
		}
	}
	Listeners []json.RawMessage
}

type outlier struct {
	Consecutive int `json:"consecutiveGatewayFailure"`
	Enforcing   int `json:"enforcingConsecutiveGatewayFailure"`
	Any         int `json:"enforcingConsecutive5xx"`
	Share       int `json:"maxEjectionPercent"`
	Interval    string
}

type routed struct {
	Name  string
	Match struct{ Path string }
	Route struct {
		Cluster     string
		Timeout     string
		RetryPolicy json.RawMessage
	}
}

func parse(t *testing.T, text []byte) parsed {
	t.Helper()
	var made parsed
	if err := json.Unmarshal(text, &made); err != nil {
		t.Fatal(err)
	}
	return made
}

func (p parsed) cluster(name string) (found struct {
	Outlier outlier
	Ejects  bool
	Panic   bool
	Most    []int

	Connect, Balance, Sweep         string
	Keepalive, Pending, Repetitions int
}) {
	found.Panic = true
	for _, one := range p.Clusters {
		if one.Name != name {
			continue
		}
		if one.OutlierDetection != nil {
			found.Outlier, found.Ejects = *one.OutlierDetection, true
		}
		// Zero is said by an empty message; without one Envoy has 50 %.
		found.Panic = string(one.CommonLb.HealthyPanicThreshold) != "{}"
		for _, threshold := range one.Circuit.Thresholds {
			found.Most = append(found.Most, threshold.MaxRequests)
			found.Pending, found.Repetitions = threshold.MaxPendingRequests, threshold.MaxRetries
		}
		found.Connect, found.Balance, found.Sweep = one.ConnectTimeout, one.LbPolicy, found.Outlier.Interval
		found.Keepalive = one.Upstream.TcpKeepalive.KeepaliveTime
	}
	return found
}

func (p parsed) route(name string) routed {
	for _, config := range p.Routes {
		for _, host := range config.VirtualHosts {
			for _, one := range host.Routes {
				if one.Name == name {
					return one
				}
			}
		}
	}
	return routed{}
}

// hosts counts the instances of a cluster, and those that are only there for when others are gone.
func (p parsed) hosts(cluster string) (all, spare int) {
	for _, one := range p.Endpoints {
		if one.ClusterName == cluster {
			for _, place := range one.Endpoints {
				all += len(place.LbEndpoints)
				if place.Priority > 0 {
					spare += len(place.LbEndpoints)
				}
			}
		}
	}
	return all, spare
}

func (p parsed) before(first, second string) bool {
	for _, one := range p.Listeners {
		text := string(one)
		i, j := strings.Index(text, `"name": "`+first), strings.Index(text, `"name": "`+second)
		if i >= 0 && i < j {
			return true
		}
	}
	return false
}
