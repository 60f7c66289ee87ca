// SPDX-License-Identifier: Apache-2.0

// Package registry is a registry of images whose content is files of a folder: it can
// be looked at, changed by hand, and served again by another process.
package registry

import (
	"context"
	"io"
	"net/http"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // by its name
	"github.com/sirupsen/logrus"
)

// New is a registry that serves what is in a folder, without encryption, and puts what
// is pushed there. It is for one at a time: it silences the log of each request, which is
// the whole process's.
func New(ctx context.Context, dir string) http.Handler {
	logrus.SetOutput(io.Discard)
	return handlers.NewApp(ctx, &configuration.Configuration{
		Storage: configuration.Storage{"filesystem": {"rootdirectory": dir}},
	})
}
