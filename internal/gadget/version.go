// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"runtime/debug"

	"gadget.example/network/internal/gadget/image"
)

// Versions says what a binary is made of.
type Versions struct {
	Netgadget       string // the module's version, or "(devel)"
	Image           string // the embedded image's digest
	InspektorGadget string // the library's version
}

// ReadVersions reads them from the binary.
func ReadVersions() (Versions, error) {
	v := Versions{Netgadget: "unknown", InspektorGadget: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Netgadget = info.Main.Version
		for _, dep := range info.Deps {
			if dep.Path == "github.com/inspektor-gadget/inspektor-gadget" {
				v.InspektorGadget = dep.Version
			}
		}
	}
	digest, err := image.Digest()
	v.Image = digest
	return v, err
}
