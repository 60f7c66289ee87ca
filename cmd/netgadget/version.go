// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"gadget.example/network/internal/gadget"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of netgadget, of its gadget image and of Inspektor Gadget",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := gadget.ReadVersions()
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "netgadget %s\ngadget image %s\nInspektor Gadget %s\n",
				v.Netgadget, v.Image, v.InspektorGadget)
			return nil
		},
	}
}
