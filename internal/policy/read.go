// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// Read reads recorded connections: what `ig run -o json` or `kubectl gadget run
// -o json` print of the data source connections (an array each reading) or of
// network (an object each event), and what `netgadget run` prints. Of events,
// those that tell how an attempt went on count as such. An error says which value,
// counted from 1, is not one of these.
func Read(r io.Reader) ([]Connection, error) {
	var all []Connection
	decoder := json.NewDecoder(r)
	for n := 1; ; n++ {
		var value json.RawMessage
		if err := decoder.Decode(&value); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("value %d: %w", n, plain(err))
		}
		rows := []json.RawMessage{value}
		if value[0] == '[' {
			if err := json.Unmarshal(value, &rows); err != nil {
				return nil, fmt.Errorf("value %d: %w", n, err)
			}
		}
		for i, raw := range rows {
			c, err := parse(raw)
			if err != nil {
				return nil, fmt.Errorf("value %d, row %d: %w", n, i+1, err)
			}
			all = append(all, c)
		}
	}
}

// plain says of a recording that was cut off what a user sees of it.
func plain(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends in the middle of a value: was the recording cut off?")
	}
	return fmt.Errorf("not JSON as -o json prints it: %w", err)
}

// row is a row of connections, or an event of network.
type row struct {
	Event string `json:"event"`
	Comm  string `json:"comm"`
	Proc  struct {
		Comm string `json:"comm"`
	} `json:"proc"`
	Egress *bool `json:"egress"`
	Src    struct {
		Addr string `json:"addr"`
	} `json:"src"`
	Dst struct {
		Addr string `json:"addr"`
	} `json:"dst"`
	Endpoint *struct {
		Addr  string `json:"addr"`
		Port  uint16 `json:"port"`
		Proto string `json:"proto"`
		K8s   struct {
			Kind        string `json:"kind"`
			Namespace   string `json:"namespace"`
			Name        string `json:"name"`
			Labels      string `json:"labels"`
			PodSelector string `json:"podSelector"`
		} `json:"k8s"`
	} `json:"endpoint"`
	K8s struct {
		Namespace   string `json:"namespace"`
		PodName     string `json:"podName"`
		PodLabels   string `json:"podLabels"`
		HostNetwork bool   `json:"hostnetwork"`
		PodIP       string `json:"podIP"`
		HostIP      string `json:"hostIP"`
		Owner       struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"owner"`
	} `json:"k8s"`
	Attempts    *uint64 `json:"attempts"`
	Established uint64  `json:"established"`
	Failed      uint64  `json:"failed"`
}

func parse(raw json.RawMessage) (Connection, error) {
	var r row
	if err := json.Unmarshal(raw, &r); err != nil {
		return Connection{}, fmt.Errorf("%s: %w", wrongType(err), errAnother)
	}
	if r.Egress == nil || r.Endpoint == nil {
		return Connection{}, fmt.Errorf("it has no egress or no endpoint: %w", errAnother)
	}
	c := Connection{
		Process:  r.Comm + r.Proc.Comm, // a row has the one, an event the other
		Egress:   *r.Egress,
		Protocol: Protocol(r.Endpoint.Proto),
		Port:     r.Endpoint.Port,
	}
	c.count(r)
	if c.Protocol != TCP && c.Protocol != UDP {
		return c, fmt.Errorf("endpoint.proto %q is neither TCP nor UDP", r.Endpoint.Proto)
	}
	if err := c.setPeer(r); err != nil {
		return c, err
	}
	return c, c.setLocal(r)
}

var errAnother = errors.New("not a row of connections, nor an event of network")

// wrongType says of which field the value is of another type than it has there.
func wrongType(err error) string {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return err.Error()
	}
	field := wrong.Field
	if field == "" {
		field = "it"
	}
	return fmt.Sprintf("%s is a %s", field, wrong.Value)
}

// count takes a row's counters, or what an event tells as one of them.
func (c *Connection) count(r row) {
	switch {
	case r.Attempts != nil:
		c.Attempts, c.Established, c.Failed = *r.Attempts, r.Established, r.Failed
	case r.Event == "failed":
		c.Failed = 1
	case r.Event == "established", r.Event == "closed":
		c.Established = 1
	default:
		c.Attempts = 1
	}
}

func (c *Connection) setPeer(r row) (err error) {
	k8s := r.Endpoint.K8s
	c.Peer = Peer{Kind: PeerKind(k8s.Kind), Namespace: k8s.Namespace, Name: k8s.Name}
	if c.Peer.Addr, err = address("endpoint.addr", r.Endpoint.Addr); err != nil {
		return err
	}
	if !c.Peer.Addr.IsValid() {
		return errors.New("endpoint.addr is empty")
	}
	if c.Peer.Labels, err = labels("endpoint.k8s.labels", k8s.Labels); err != nil {
		return err
	}
	c.Peer.Selector, err = labels("endpoint.k8s.podSelector", k8s.PodSelector)
	return err
}

func (c *Connection) setLocal(r row) (err error) {
	c.Local = Pod{
		Namespace: r.K8s.Namespace, Name: r.K8s.PodName, HostNetwork: r.K8s.HostNetwork,
		Owner: Owner{Kind: r.K8s.Owner.Kind, Name: r.K8s.Owner.Name},
	}
	if c.Local.IP, err = address("k8s.podIP", r.K8s.PodIP); err != nil {
		return err
	}
	if c.Local.NodeIP, err = address("k8s.hostIP", r.K8s.HostIP); err != nil {
		return err
	}
	if c.Local.Labels, err = labels("k8s.podLabels", r.K8s.PodLabels); err != nil {
		return err
	}
	if c.Egress {
		c.Own, err = address("src.addr", r.Src.Addr)
	} else {
		c.Own, err = address("dst.addr", r.Dst.Addr)
	}
	return err
}

// address is the zero address where there is none.
func address(field, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return addr, fmt.Errorf("%s %q is not an IP address", field, s)
	}
	return addr.Unmap().WithZone(""), nil
}

// labels reads key=value pairs with commas between, as Inspektor Gadget writes
// labels: neither keys nor values can have these characters.
func labels(field, s string) (map[string]string, error) {
	pairs := map[string]string{}
	if s == "" {
		return pairs, nil
	}
	for pair := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%s %q is not key=value,…", field, s)
		}
		pairs[key] = value
	}
	return pairs, nil
}
