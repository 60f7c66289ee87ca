// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"errors"
	"net"
	"net/http"
)

// serveOutside serves what pods call outside of the cluster: HTTP, and a name server that knows no name. It goes on until
// this process ends.
func serveOutside(ctx context.Context) error {
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", ":80")
	if err != nil {
		return err
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("hello\n")) // or the client has gone
	})} //nolint:gosec // pods of a test's call it
	go func() { _ = server.Serve(l) }()
	for _, address := range outside {
		// By address: an answer has to come from where the question went.
		names, err := net.ListenUDP("udp", &net.UDPAddr{IP: address.Addr().AsSlice(), Port: 53})
		if err != nil {
			return err
		}
		go refuse(names)
	}
	return nil
}

// refuse answers each question of DNS with "no such name" (RFC 1035, 4.1.1: QR is the first bit of byte 2, RCODE the last
// four of byte 3).
func refuse(names *net.UDPConn) {
	question := make([]byte, 1500)
	for {
		n, from, err := names.ReadFromUDPAddrPort(question)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 12 {
			continue
		}
		question[2] |= 0x80
		question[3] = 3
		_, _ = names.WriteToUDPAddrPort(question[:n], from) // it asks again
	}
}
