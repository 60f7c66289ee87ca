// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gadget.example/network/internal/service"
)

func newUninstallCommand() *cobra.Command {
	var force bool
	uninstall := &cobra.Command{
		Use:   "uninstall",
		Short: "Stop, disable and remove the service that install has made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := service.Uninstall(cmd.Context(), force)
			if err != nil {
				return err
			}
			if removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed "+service.Path)
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "there is no "+service.Path+": nothing to remove")
			}
			return nil
		},
	}
	uninstall.Flags().BoolVar(&force, "force", false, "remove a unit of this name that netgadget did not write")
	return uninstall
}
