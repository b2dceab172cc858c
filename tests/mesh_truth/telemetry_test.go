package meshtruth

import (
	"regexp"
	"testing"

	appsv1 "k8s.io/api/apps/v1"

	"istio.io/istio/pkg/config/mesh"
)

// What the pods' annotation says has to be words of Istio's ProxyConfig, or the proxy would not start with it.
func TestThePodsAskTheirProxiesForCountersInIstiosOwnWords(t *testing.T) {
	objects, err := render(t, prod).kubernetes()
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, one := range objects {
		deployment, is := one.(*appsv1.Deployment)
		if !is {
			continue
		}
		config, err := mesh.ApplyProxyConfig(
			deployment.Spec.Template.Annotations["proxy.istio.io/config"], mesh.DefaultMeshConfig(),
		)
		if err != nil {
			t.Errorf("%s: %v", deployment.Name, err)
			continue
		}
		for _, shown := range config.GetDefaultConfig().GetProxyStatsMatcher().GetInclusionRegexps() {
			if _, err := regexp.Compile(shown); err != nil {
				t.Errorf("%s: %v", deployment.Name, err)
			}
			asked++
		}
	}
	if asked != len(services) {
		t.Errorf("%d of %d services ask for counters", asked, len(services))
	}
}
