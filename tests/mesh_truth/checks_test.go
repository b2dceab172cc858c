package meshtruth

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/analysis/analyzers"
	"istio.io/istio/pkg/config/analysis/diag"
	"istio.io/istio/pkg/config/analysis/local"
	"istio.io/istio/pkg/config/resource"
	"istio.io/istio/pkg/config/schema/collections"
)

// misspelt are fields and kinds that nobody knows; Istio and Kubernetes would drop them in silence.
func (s shipped) misspelt() []string {
	var problems []string
	if _, err := s.kubernetes(); err != nil {
		problems = append(problems, err.Error())
	}
	for _, one := range s {
		if !one.isIstio() {
			continue
		}
		version, err := schema.ParseGroupVersion(one.apiVersion)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		kind := config.GroupVersionKind{Group: version.Group, Version: version.Version, Kind: one.kind}
		known, found := collections.Pilot.FindByGroupVersionAliasesKind(kind)
		if !found {
			problems = append(problems, fmt.Sprintf("%s: there is no kind %s", one, kind))
			continue
		}
		var read struct {
			Spec json.RawMessage `json:"spec"`
		}
		if err := yaml.UnmarshalStrict([]byte(one.text), &struct {
			Spec       any            `json:"spec"`
			APIVersion string         `json:"apiVersion"`
			Kind       string         `json:"kind"`
			Metadata   map[string]any `json:"metadata"`
		}{}); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", one, err))
		}
		if err := yaml.Unmarshal([]byte(one.text), &read); err != nil {
			problems = append(problems, err.Error())
			continue
		}
		spec, err := known.NewInstance()
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		if err := config.ApplyJSONStrict(spec, string(read.Spec)); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", one, err))
		}
	}
	return problems
}

// refused is what Istio's webhook would not let in.
func (s shipped) refused() []string {
	var problems []string
	for _, one := range s {
		if one.isIstio() {
			if _, _, err := crd.ParseInputs(one.text); err != nil {
				problems = append(problems, fmt.Sprintf("%s: %s", one, firstLines(err)))
			}
		}
	}
	return problems
}

// analyzed is what all of Istio's analyzers have to say, down to the level of an information. The pods are added that
// would run.
func (s shipped) analyzed(t testing.TB) []string {
	t.Helper()
	analyzer := local.NewIstiodAnalyzer(analyzers.AllCombined(), "", resource.Namespace("istio-system"), nil)
	analyzer.SetSuppressions([]local.AnalysisSuppression{
		// Nobody has injected a proxy into these pods.
		{Code: "IST0103", ResourceName: "*"},
		// "EnvoyFilter exposes internal implementation details": it does. The goldens show what came of it.
		{Code: "IST0133", ResourceName: "EnvoyFilter *"},
	})
	var sources []local.ReaderSource
	add := func(name, text string) {
		sources = append(sources, local.ReaderSource{Name: name, Reader: strings.NewReader(text)})
	}
	for _, one := range s {
		add(one.String(), one.text)
	}
	add("gateway", asYAML(t, gatewayService()))
	add("certificate", asYAML(t, certificate()))
	add("namespace", "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-ingress, labels: {istio-injection: enabled}}\n")
	for i, one := range s.running(t, 2).objects {
		text := asYAML(t, one)
		if strings.Contains(text, "kind: Pod\n") {
			add(fmt.Sprintf("pod %d", i), text)
		}
	}
	if err := analyzer.AddTestReaderKubeSource(sources); err != nil {
		return []string{err.Error()}
	}
	stop := make(chan struct{})
	defer close(stop)
	result, err := analyzer.Analyze(stop)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.SkippedAnalyzers) > 0 {
		t.Fatalf("analyzers that did not run: %v", result.SkippedAnalyzers)
	}
	var problems []string
	for _, one := range result.Messages {
		if one.Type.Level().IsWorseThanOrEqualTo(diag.Info) {
			problems = append(problems, one.String())
		}
	}
	return problems
}

// certificate is what prod asks for at the edge.
func certificate() *corev1.Secret {
	key, _, root := certify(nil, nil, "")
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		panic(err)
	}
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: "dinemesh-edge", Namespace: edgeNamespace},
		Type:       corev1.SecretTypeTLS,
		Data: map[string][]byte{
			"tls.crt": root,
			"tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		},
	}
}

func asYAML(t testing.TB, object any) string {
	t.Helper()
	text, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func firstLines(err error) string {
	words, _, _ := strings.Cut(err.Error(), "\n\n")
	return strings.Join(strings.Fields(words), " ")
}

func TestNothingShippedIsMisspeltRefusedOrSuspect(t *testing.T) {
	for _, overlay := range []string{prod, dev} {
		s := render(t, overlay)
		for _, problem := range append(append(s.misspelt(), s.refused()...), s.analyzed(t)...) {
			t.Errorf("%s: %s", overlay, problem)
		}
	}
}
