package meshtruth

import (
	"os"
	"testing"

	"istio.io/istio/pkg/log"
)

func TestMain(m *testing.M) {
	// istiod tells much of itself; what a test needs to say, it says.
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.NoneLevel)
	}
	os.Exit(m.Run())
}
