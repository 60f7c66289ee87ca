// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"oras.land/oras-go/v2/errdef"
)

// verifying are IG's parameters by which an image is refused. IG asks them of images by
// name alone, and says nothing where it does not.
var verifying = []string{"verify-image", "public-keys", "certificates", "policy-document", "allowed-gadgets"}

// checkVerifiable is an error where somebody relies on a check that is not made.
func (i Image) checkVerifiable(values map[string]string) error {
	if i.Name != "" && i.File == "" {
		return nil
	}
	what := "the embedded image is part of netgadget"
	if i.File != "" {
		what = "an archive is taken as it is"
	}
	for _, name := range verifying {
		value, given := values[name]
		// A value that is neither is named by who takes it.
		if on, err := strconv.ParseBool(value); name == "verify-image" && (err != nil || !on) {
			continue
		}
		if given {
			return fmt.Errorf("--%s: %s, and not verified; give the name of an image, by --image", name, what)
		}
	}
	return nil
}

// explain says in one line why IG refuses an image, where that is by its signature. IG
// has no errors of its own for that, and tells of every form that it has tried.
func (i Image) explain(err error) error {
	text := err.Error()
	if !strings.Contains(text, "verifying image: ") {
		return err
	}
	var why string
	switch {
	case strings.Contains(text, "not signed by the provided keys"):
		why = "is signed by another key"
	case strings.Contains(text, "does not correspond to image"):
		why = "bears the signature of another image"
	case strings.Contains(text, "expected 1, got"):
		why = "bears several signatures in one place, of which Inspektor Gadget reads none"
	case errors.Is(err, errdef.ErrNotFound):
		why = "has no signature"
	default:
		why = "cannot be verified: " + strings.ReplaceAll(text, "\n", "; ")
	}
	return fmt.Errorf("image %s %s, and is not run: give the key of who publishes it by --public-keys (without, it is Inspektor Gadget's), "+
		"or --verify-image=false for an image that you built yourself", i.Name, why)
}
