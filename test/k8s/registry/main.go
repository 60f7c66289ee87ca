// SPDX-License-Identifier: Apache-2.0

// Command registry is a registry of images as a pod: the distribution project's, which keeps them in memory.
package main

import (
	"context"
	"log"
	"net/http"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
)

func main() {
	config := &configuration.Configuration{Storage: configuration.Storage{"inmemory": nil}}
	server := &http.Server{Addr: ":5000", Handler: handlers.NewApp(context.Background(), config)} //nolint:gosec // within a test's cluster
	log.Fatal(server.ListenAndServe())
}
