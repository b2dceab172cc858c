package meshtruth

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

const health = "/grpc.health.v1.Health/Check"

var reflection = []string{
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}

// methodsOf is every RPC of each service, out of the contracts that the edge translates by, with what all services
// answer besides.
func methodsOf(t testing.TB, from shipped) map[string][]string {
	t.Helper()
	found := contracts.FindStringSubmatch(from.istio())
	if found == nil {
		t.Fatal("the edge has no contracts")
	}
	raw, err := base64.StdEncoding.DecodeString(found[1])
	if err != nil {
		t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	methods := map[string][]string{}
	for _, file := range set.File {
		service := strings.TrimSuffix(strings.TrimPrefix(file.GetPackage(), "dinemesh."), ".v1")
		if index(service) < 0 {
			continue
		}
		for _, one := range file.Service {
			for _, method := range one.Method {
				methods[service] = append(methods[service],
					fmt.Sprintf("/%s.%s/%s", file.GetPackage(), one.GetName(), method.GetName()))
			}
		}
	}
	for _, service := range services {
		if len(methods[service]) == 0 {
			t.Fatalf("%s has no methods", service)
		}
		methods[service] = append(append(methods[service], health), reflection...)
	}
	return methods
}

// only is the text of one document.
func (s shipped) only(which string) string {
	for _, one := range s {
		if one.String() == which {
			return one.text
		}
	}
	return ""
}

func valueAfter(text, prefix string) string {
	for _, line := range strings.Split(text, "\n") {
		if rest, found := strings.CutPrefix(line, prefix); found {
			return rest
		}
	}
	return ""
}
