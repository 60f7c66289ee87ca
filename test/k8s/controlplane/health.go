// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	encoding "encoding/base64"
	"errors"
	"net/http"
)

// httpClient is one that trusts the cluster's authority, as an administrator.
func (c *ControlPlane) httpClient() (*http.Client, error) {
	admin, err := c.Client("admin", "system:masters")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(admin.Certificate, admin.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.Certificate) {
		return nil, errors.New("the cluster's authority has no certificate")
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}}, nil
}

// healthy says whether a server answers that it is well; client nil: without encryption.
func healthy(ctx context.Context, client *http.Client, url string) bool {
	if client == nil {
		client = &http.Client{Transport: &http.Transport{}}
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func base64(b []byte) string { return encoding.StdEncoding.EncodeToString(b) }
