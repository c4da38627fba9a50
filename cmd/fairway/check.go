package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fairway-proxy/fairway/cmd/internal/cli"
	"github.com/fairway-proxy/fairway/discovery/file"
)

func newCheck() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check [-f] FILE",
		Short: "Read a configuration and print what it would serve, or what is wrong with it and where",
		RunE: func(cmd *cobra.Command, args []string) error {
			if path == "" && len(args) == 1 {
				path, args = args[0], nil
			}
			if path == "" || len(args) > 0 {
				return cli.Misuse(errors.New("which file? give one, as -f FILE"))
			}
			c, err := file.Load(path)
			if cli.JSON(cmd) {
				return checkJSON(cmd, c, err)
			}
			if err != nil {
				return fmt.Errorf("this configuration cannot be served:\n%w", err)
			}
			return writeRoutes(cmd.OutOrStdout(), describeConfig(c))
		},
	}
	cmd.Flags().StringVarP(&path, "file", "f", "", "the configuration `file`")
	return cmd
}

// checkJSON prints the verdict as one object; a bad configuration is still a
// failure.
func checkJSON(cmd *cobra.Command, c *file.Config, err error) error {
	verdict := struct {
		OK     bool        `json:"ok"`
		Errors []string    `json:"errors"`
		Config *configView `json:"config,omitempty"`
	}{OK: err == nil, Errors: []string{}}
	if err == nil {
		v := describeConfig(c)
		verdict.Config = &v
	} else {
		for _, e := range problems(err) {
			verdict.Errors = append(verdict.Errors, e.Error())
		}
	}
	if werr := cli.WriteJSON(cmd.OutOrStdout(), verdict); werr != nil {
		return werr
	}
	if err != nil {
		return errors.New("this configuration cannot be served")
	}
	return nil
}

// problems takes a joined error apart.
func problems(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}
