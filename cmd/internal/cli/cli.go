// Package cli is what all our commands have in common: how they end, how they
// are asked for JSON, and how they say their version.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	Done    = 0
	Failed  = 1
	Misused = 2
)

// misuse is an error in how a command was called.
type misuse struct{ error }

// Misuse marks an error as one in how the command was called; nil stays nil.
func Misuse(err error) error {
	if err == nil {
		return nil
	}
	return misuse{err}
}

// Main runs the process's command line and ends the process. Ctrl-C and SIGTERM
// end the command's context; a second one ends the process at once.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(Execute(ctx, root, os.Args[1:], os.Stdout, os.Stderr))
}

// Execute runs one command line and gives its exit code. ctx ends when the
// process is asked to stop.
func Execute(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Misuse(fmt.Errorf("%w; see %s --help", err, cmd.CommandPath()))
	})
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return Done
	}
	fmt.Fprintf(stderr, "%s: %v\n", root.Name(), err)
	if _, misused := errors.AsType[misuse](err); misused {
		return Misused
	}
	return Failed
}

// Group makes a command of nothing but subcommands: alone it prints its help.
// They all have --json.
func Group(root *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	root.Args = cobra.ArbitraryArgs
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return Misuse(fmt.Errorf("there is no command %q; see %s --help", args[0], cmd.CommandPath()))
		}
		return cmd.Help()
	}
	root.PersistentFlags().Bool("json", false, "say what there is to say as JSON")
	root.AddCommand(subcommands...)
	return root
}

// NoArgs refuses arguments as misuse.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Misuse(fmt.Errorf("%s takes no argument, got %q", cmd.CommandPath(), args[0]))
	}
	return nil
}

// JSON tells whether the command was asked for JSON.
func JSON(cmd *cobra.Command) bool {
	on, err := cmd.Flags().GetBool("json")
	return err == nil && on
}

// WriteJSON writes v as one indented JSON value.
func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Version is the version to speak of: the linker's word if there is one, else
// what the Go tool knows.
func Version(linked string) string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// NewVersion is the subcommand that says which version this is. The command
// above it, or it alone, has --json.
func NewVersion(linked string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{Version(linked), runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if JSON(cmd) {
				return WriteJSON(cmd.OutOrStdout(), v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s, %s/%s)\n", cmd.Root().Name(), v.Version, v.Go, v.OS, v.Arch)
			return err
		},
	}
}

// IsTerminal tells whether somebody looks at w as it is written: a progress bar would be
// seen as one.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
