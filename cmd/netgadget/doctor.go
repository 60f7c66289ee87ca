// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gadget.example/network/internal/preflight"
)

func newDoctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks to run the gadget",
		Long: "Checks what Inspektor Gadget needs to run the gadget. Each line says found or\n" +
			"missing, and what to do. Exits with 1 if the gadget cannot run here.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := preflight.Run()
			for _, f := range findings {
				fmt.Fprintln(cmd.OutOrStdout(), f)
			}
			return preflight.Missing(findings)
		},
	}
}
