package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// NewMan is the subcommand that writes the manual: a page for each command, of
// what its help says.
func NewMan() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual's pages into a directory",
		Long: `Man writes a page of the manual for each command into a directory, which it makes
if it is not there. man reads them with -M, or from a directory on its path.`,
		Example: "  fairway man ~/.local/share/man/man1\n  man fairway-doctor",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return Misuse(errors.New("into which directory? give one"))
			}
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: root.Name()}, args[0]); err != nil {
				return err
			}
			pages, err := filepath.Glob(filepath.Join(args[0], root.Name()+"*.1"))
			if err != nil {
				return err
			}
			if JSON(cmd) {
				return WriteJSON(cmd.OutOrStdout(), pages)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d pages in %s\n", len(pages), args[0])
			return err
		},
	}
}
