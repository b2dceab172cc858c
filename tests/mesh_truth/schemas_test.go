package meshtruth

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"istio.io/istio/manifests"
)

// The schemas by which tests/istio reads the files where there is no Go: those of Istio's own CRDs, without their prose.
func TestTheSchemasAreThoseOfIstiosOwnCRDs(t *testing.T) {
	text, err := manifests.FS.ReadFile("charts/base/files/crd-all.gen.yaml")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, one := range render(t, prod) {
		if one.isIstio() {
			used[one.apiVersion+"/"+one.kind] = true
		}
	}
	found := map[string]any{}
	for _, one := range bytes.Split(text, []byte("\n---\n")) {
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.Unmarshal(one, &crd); err != nil {
			t.Fatal(err)
		}
		for _, version := range crd.Spec.Versions {
			name := crd.Spec.Group + "/" + version.Name + "/" + crd.Spec.Names.Kind
			if used[name] {
				raw, err := json.Marshal(version.Schema.OpenAPIV3Schema.Properties["spec"])
				if err != nil {
					t.Fatal(err)
				}
				var schema any
				if err := json.Unmarshal(raw, &schema); err != nil {
					t.Fatal(err)
				}
				found[name] = terse(schema)
			}
		}
	}
	if len(found) != len(used) {
		t.Fatalf("Istio has schemas for %d of the %d kinds: %v", len(found), len(used), used)
	}
	raw, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	made, err := tidy(raw)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(goldens, "schemas.json")
	if *update {
		if err := os.WriteFile(file, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if before, err := os.ReadFile(file); err != nil || !bytes.Equal(before, made) {
		t.Errorf("%s is not of this Istio (make mesh-goldens)", file)
	}
}

// terse leaves out descriptions, and rules that only an API server can check.
func terse(schema any) any {
	switch one := schema.(type) {
	case map[string]any:
		made := map[string]any{}
		for key, value := range one {
			if _, isText := value.(string); isText && key == "description" || key == "x-kubernetes-validations" {
				continue
			}
			made[key] = terse(value)
		}
		return made
	case []any:
		made := []any{}
		for _, value := range one {
			made = append(made, terse(value))
		}
		return made
	}
	return schema
}
