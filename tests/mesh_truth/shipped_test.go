// Package meshtruth shows, by Istio's own code and a real Envoy, that the YAML in istio/ and k8s/ does what it says.
package meshtruth

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pkg/cluster"
	kubelib "istio.io/istio/pkg/kube"
)

const (
	prod = "../../k8s/overlays/prod"
	dev  = "../../k8s/overlays/dev"

	namespace     = "dinemesh"
	edgeNamespace = "istio-ingress"
	edgeAccount   = "istio-ingressgateway"
	istioVersion  = "1.31.0"
)

var services = []string{"reservation", "deposit", "history", "restaurant"}

// document is one object of the shipped YAML.
type document struct {
	text, apiVersion, kind, namespace, name string
}

func (d document) String() string { return fmt.Sprintf("%s %s.%s", d.kind, d.name, d.namespace) }

func (d document) isIstio() bool { return strings.Contains(d.apiVersion, ".istio.io/") }

// shipped is what an overlay applies.
type shipped []document

// render makes an overlay as `kubectl apply -k` would. The keys are those of istio/, which nobody has: an installation's
// own come from its overlay.
func render(t testing.TB, folder string) shipped {
	t.Helper()
	found := build(t, folder)
	text, err := os.ReadFile("../../istio/request-authentication.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return found.with(t, strings.Split(string(text), "\n---\n")...)
}

func build(t testing.TB, folder string) shipped {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatalf("%s: %v", folder, err)
	}
	var found shipped
	for _, one := range made.Resources() {
		text, err := one.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, read(t, string(text)))
	}
	return found
}

func read(t testing.TB, text string) document {
	t.Helper()
	var head struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		t.Fatal(err)
	}
	// Without an end of line the next document would begin in the last line of this one.
	text = strings.TrimRight(text, "\n") + "\n"
	return document{text, head.APIVersion, head.Kind, head.Namespace, head.Name}
}

// istio is the part of it that Istio reads, as one text. `without` leaves kinds out.
func (s shipped) istio(without ...string) string {
	var texts []string
	for _, one := range s {
		if one.isIstio() && !slices.Contains(without, one.kind) {
			texts = append(texts, one.text)
		}
	}
	return strings.Join(texts, "---\n")
}

// edited is a copy in which one document has `old` replaced by `new`. It must be there, once.
func (s shipped) edited(t testing.TB, which, old, new string) shipped {
	t.Helper()
	copied := append(shipped{}, s...)
	for i, one := range copied {
		if one.String() != which {
			continue
		}
		if strings.Count(one.text, old) != 1 {
			t.Fatalf("%s has %q %d times, not once:\n%s", which, old, strings.Count(one.text, old), one.text)
		}
		copied[i] = read(t, strings.Replace(one.text, old, new, 1))
		return copied
	}
	t.Fatalf("there is no %s", which)
	return nil
}

// with is a copy with documents in place of those of the same name, or besides.
func (s shipped) with(t testing.TB, texts ...string) shipped {
	t.Helper()
	copied := append(shipped{}, s...)
	for _, text := range texts {
		one := read(t, text)
		copied = append(copied.without(one.String()), one)
	}
	return copied
}

func (s shipped) without(names ...string) shipped {
	var left shipped
	for _, one := range s {
		if !slices.Contains(names, one.String()) {
			left = append(left, one)
		}
	}
	return left
}

// kubernetes decodes what Kubernetes reads, strictly: a misspelt field is an error.
func (s shipped) kubernetes() ([]runtime.Object, error) {
	decoder := serializer.NewCodecFactory(kubelib.IstioScheme, serializer.EnableStrict).UniversalDeserializer()
	var found []runtime.Object
	for _, one := range s {
		if one.isIstio() {
			continue
		}
		object, _, err := decoder.Decode([]byte(one.text), nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one, err)
		}
		found = append(found, object)
	}
	return found, nil
}

// pod is one that runs, as the injected workload of a Deployment or as the gateway.
type pod struct {
	service, namespace, account, name, address string
	labels                                     map[string]string
}

// running is what a Kubernetes would hold after an apply: the objects of the overlay and its pods.
type running struct {
	objects []runtime.Object
	pods    []pod
}

// running gives every service `replicas` ready pods on loopback addresses, and adds the gateway as Istio's chart
// installs it.
func (s shipped) running(t testing.TB, replicas int) running {
	t.Helper()
	objects, err := s.kubernetes()
	if err != nil {
		t.Fatal(err)
	}
	made := running{}
	deployments := []*appsv1.Deployment{gateway()}
	kube := []*corev1.Service{gatewayService()}
	for _, one := range objects {
		switch object := one.(type) {
		case *corev1.Namespace:
			made.objects = append(made.objects, object)
		case *corev1.ServiceAccount:
			made.objects = append(made.objects, object)
		case *corev1.Service:
			kube = append(kube, object)
		case *appsv1.Deployment:
			deployments = append(deployments, object)
		}
	}
	sort.Slice(deployments, func(i, j int) bool { return deployments[i].Name < deployments[j].Name })
	sort.Slice(kube, func(i, j int) bool { return kube[i].Name < kube[j].Name })
	objects = nil
	var pods []*corev1.Pod
	for i, deployment := range deployments {
		template := deployment.Spec.Template
		for n := range replicas {
			// Each in a zone of its own, as `prod` spreads them.
			labels := map[string]string{"security.istio.io/tlsMode": "istio", "istio-locality": zone(n)}
			for key, value := range template.Labels {
				labels[key] = value
			}
			if labels["sidecar.istio.io/inject"] == "false" {
				delete(labels, "security.istio.io/tlsMode")
			}
			one := &corev1.Pod{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
				ObjectMeta: metav1.ObjectMeta{
					Name: fmt.Sprintf("%s-%d", deployment.Name, n), Namespace: deployment.Namespace,
					Labels: labels, Annotations: template.Annotations,
				},
				Spec: *template.Spec.DeepCopy(),
			}
			one.Status.PodIP = fmt.Sprintf("127.0.%d.%d", 10+i, 1+n)
			one.Status.PodIPs = []corev1.PodIP{{IP: one.Status.PodIP}}
			one.Status.Phase = corev1.PodRunning
			one.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			pods = append(pods, one)
			made.objects = append(made.objects, one)
			made.pods = append(made.pods, pod{
				deployment.Name, one.Namespace, one.Spec.ServiceAccountName, one.Name, one.Status.PodIP, labels,
			})
		}
	}
	for i, service := range kube {
		service.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 10+i)
		service.Spec.ClusterIPs = []string{service.Spec.ClusterIP}
		made.objects = append(made.objects, service, slice(t, service, pods))
	}
	return made
}

func (r running) of(t testing.TB, service string, n int) pod {
	t.Helper()
	for _, one := range r.pods {
		if one.name == fmt.Sprintf("%s-%d", service, n) {
			return one
		}
	}
	t.Fatalf("there is no pod %s-%d", service, n)
	return pod{}
}

// slice is what the endpoint controller would write: the pods that the Service really selects, and where its target
// port really leads.
func slice(t testing.TB, service *corev1.Service, pods []*corev1.Pod) *discoveryv1.EndpointSlice {
	t.Helper()
	made := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Name: service.Name, Namespace: service.Namespace,
			Labels: map[string]string{discoveryv1.LabelServiceName: service.Name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	ready := true
	var first *corev1.Pod
	for _, one := range pods {
		if one.Namespace != service.Namespace || !selects(service.Spec.Selector, one.Labels) {
			continue
		}
		if first == nil {
			first = one
		}
		made.Endpoints = append(made.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{one.Status.PodIP},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Name: one.Name, Namespace: one.Namespace},
		})
	}
	for _, port := range service.Spec.Ports {
		number, found := target(port, first)
		if !found {
			continue
		}
		made.Ports = append(made.Ports, discoveryv1.EndpointPort{
			Name: &port.Name, Port: &number, AppProtocol: port.AppProtocol,
		})
	}
	return made
}

func target(port corev1.ServicePort, one *corev1.Pod) (int32, bool) {
	if port.TargetPort.Type == intstr.Int {
		if port.TargetPort.IntVal == 0 {
			return port.Port, true
		}
		return port.TargetPort.IntVal, true
	}
	if one != nil {
		for _, container := range one.Spec.Containers {
			for _, open := range container.Ports {
				if open.Name == port.TargetPort.StrVal {
					return open.ContainerPort, true
				}
			}
		}
	}
	return 0, false
}

func selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return len(selector) > 0
}

var gatewayLabels = map[string]string{"app": "istio-ingressgateway", "istio": "ingressgateway"}

func gateway() *appsv1.Deployment {
	made := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: edgeAccount, Namespace: edgeNamespace}}
	made.Spec.Template.Labels = gatewayLabels
	made.Spec.Template.Spec.ServiceAccountName = edgeAccount
	made.Spec.Template.Spec.Containers = []corev1.Container{{Name: "istio-proxy"}}
	return made
}

func gatewayService() *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: edgeAccount, Namespace: edgeNamespace, Labels: gatewayLabels},
		Spec: corev1.ServiceSpec{
			Selector: gatewayLabels,
			Ports: []corev1.ServicePort{
				{Name: "http2", Port: 80, Protocol: "TCP", TargetPort: intstr.FromInt32(80)},
				{Name: "https", Port: 443, Protocol: "TCP", TargetPort: intstr.FromInt32(443)},
			},
		},
	}
}

func zone(n int) string { return fmt.Sprintf("here.zone-%d", n) }

// proxy is the Envoy of a pod, as istiod knows it.
func (p pod) proxy() *model.Proxy {
	kind := model.SidecarProxy
	if p.labels["istio"] == "ingressgateway" {
		kind = model.Router
	}
	return &model.Proxy{
		Type: kind, ID: p.name + "." + p.namespace, ConfigNamespace: p.namespace,
		IPAddresses: []string{p.address}, Labels: p.labels, Locality: &core.Locality{Region: "here", Zone: "zone-0"},
		Metadata: &model.NodeMetadata{
			Namespace: p.namespace, Labels: p.labels, ServiceAccount: p.account,
			IstioVersion: istioVersion, ClusterID: cluster.ID("Kubernetes"),
			InstanceIPs: []string{p.address},
		},
	}
}

// tidy indents JSON in the one way that does not change from run to run.
func tidy(text []byte) ([]byte, error) {
	var any any
	if err := json.Unmarshal(text, &any); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	err := encoder.Encode(any)
	return out.Bytes(), err
}
