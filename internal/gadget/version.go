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
	v := Versions{Netgadget: unknownVersion, InspektorGadget: libraryVersion()}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Netgadget = info.Main.Version
	}
	digest, err := image.Digest()
	v.Image = digest
	return v, err
}

const unknownVersion = "unknown"

// libraryVersion is the version of IG that this binary was built with.
func libraryVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/inspektor-gadget/inspektor-gadget" {
				return dep.Version
			}
		}
	}
	return unknownVersion
}
