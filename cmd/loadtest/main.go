// Command loadtest plays a workload against a server that speaks OpenAI's API and says how it did.
package main

import (
	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
)

// version is set by the linker (make build).
var version = ""

func main() { cli.Main(newRoot()) }

func newRoot() *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "loadtest",
		Short: "Play a workload against a server that speaks OpenAI's API and measure what its users would see",
	}, newRun(), newReport(), newCompare(), newSaturation(), newTables(), newOverload(), cli.NewVersion(version))
}
