// Command fairway is a proxy for LLM inference: it reads each request, picks the
// engine that will serve it best, and relays the stream straight from it.
package main

import (
	"io"

	"github.com/spf13/cobra"
	_ "golang.org/x/crypto/x509roots/fallback" // whom to trust where the system says nothing of it, as in our image
	"google.golang.org/grpc/grpclog"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// version is set by the linker (make build).
var version = ""

func main() {
	// What happens on connections to and from pickers is told by those who use them.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	cli.Main(newRoot())
}

func newRoot() *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "fairway",
		Short: "A proxy for LLM inference that sends each request to the engine with its prompt in cache",
	}, newServe(), newEPP(), newDemo(), newCheck(), newDoctor(), newExplain(), cli.NewMan(), cli.NewVersion(version))
}
