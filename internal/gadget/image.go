// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"

	gadgetcontext "github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-context"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"

	"gadget.example/network/internal/gadget/image"
)

// Image says where a gadget image is. The zero value is the image embedded in
// this binary.
type Image struct {
	// Name is an image in IG's local store, pulled from its registry when it
	// is not there: "network:latest". With File, it is the name within.
	Name string

	// File is an archive made by `ig image export`.
	File string
}

// context makes the context that IG runs the image in.
func (i Image) context(ctx context.Context, ops []operators.DataOperator, options ...gadgetcontext.Option) (*gadgetcontext.GadgetContext, error) {
	target, err := i.target(ctx)
	if err != nil {
		return nil, err
	}
	name, err := i.name()
	if err != nil {
		return nil, err
	}
	if target != nil {
		options = append(options, gadgetcontext.WithOrasReadonlyTarget(target))
	}
	options = append(options, gadgetcontext.WithDataOperators(ops...))
	return gadgetcontext.New(ctx, name, options...), nil
}

// defaultName is how an archive holds the image, unless Name says otherwise.
const defaultName = "network:latest"

func (i Image) name() (string, error) {
	switch {
	case i.Name != "":
		return i.Name, nil
	case i.File != "":
		return defaultName, nil
	default:
		return image.Name()
	}
}

// target opens what holds the image; nil is IG's local store.
func (i Image) target(ctx context.Context) (oras.ReadOnlyTarget, error) {
	switch {
	case i.File != "":
		if err := checkArchive(i.File); err != nil {
			return nil, err
		}
		target, err := oci.NewFromTar(ctx, i.File)
		if err != nil {
			return nil, fmt.Errorf("opening image file %s: %w; it is made by `ig image export`", i.File, err)
		}
		return target, nil
	case i.Name != "":
		return nil, nil
	default:
		layout, err := image.Layout()
		if err != nil {
			return nil, err
		}
		return open(ctx, layout)
	}
}

func open(ctx context.Context, layout fs.FS) (oras.ReadOnlyTarget, error) {
	target, err := oci.NewFromFS(ctx, layout)
	if err != nil {
		return nil, fmt.Errorf("opening the embedded gadget image: %w", err)
	}
	return target, nil
}

// checkArchive tells a missing or unreadable file from a broken one.
func checkArchive(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("opening image file: %w", err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, 512)); err != nil {
		return fmt.Errorf("image file %s is no archive: %w; it is made by `ig image export`", name, err)
	}
	return nil
}
