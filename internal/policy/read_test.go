// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A row of connections as IG v0.51.1 prints it in a cluster.
const recordedRow = `{"attempts":3,"cause":"","comm":"nginx","egress":true,
	"endpoint":{"addr":"10.96.0.20","k8s":{"kind":"svc","labels":"a=b","name":"postgres","namespace":"db","podSelector":"app=postgres,tier=x"},"port":5432,"proto":"TCP","proto_raw":6,"version":4},
	"error":"","error_raw":0,"established":2,"failed":0,
	"k8s":{"containerName":"web","hostIP":"192.0.2.1","hostnetwork":false,"namespace":"shop","node":"n1","owner":{"kind":"Deployment","name":"web"},"podIP":"10.244.0.7","podLabels":"app=web,pod-template-hash=5d8f","podName":"web-5d8f-x"},
	"mntns_id":1,"netns_id":2,"protocol":"TCP","protocol_raw":6,"uid":0}`

var row1 = Connection{
	Process: "nginx", Egress: true, Protocol: TCP, Port: 5432, Attempts: 3, Established: 2,
	Local: Pod{
		Namespace: "shop", Name: "web-5d8f-x", Owner: Owner{"Deployment", "web"},
		Labels: map[string]string{"app": "web", "pod-template-hash": "5d8f"},
		IP:     netip.MustParseAddr("10.244.0.7"), NodeIP: netip.MustParseAddr("192.0.2.1"),
	},
	Peer: Peer{
		Addr: netip.MustParseAddr("10.96.0.20"), Kind: PeerService, Namespace: "db", Name: "postgres",
		Labels: map[string]string{"a": "b"}, Selector: map[string]string{"app": "postgres", "tier": "x"},
	},
}

func event(kind, proc string) string {
	return `{"event":"` + kind + `","proc":{"comm":"` + proc + `"},"egress":false,"src":{"addr":"2001:db8::1"},"dst":{"addr":"2001:db8::2"},"endpoint":{"addr":"2001:db8::1","port":53,"proto":"UDP"}}`
}

func TestReadsWhatIsRecorded(t *testing.T) {
	udp := Connection{
		Process: "coredns", Protocol: UDP, Port: 53, Own: netip.MustParseAddr("2001:db8::2"),
		Local: Pod{Labels: map[string]string{}},
		Peer:  Peer{Addr: netip.MustParseAddr("2001:db8::1"), Labels: map[string]string{}, Selector: map[string]string{}},
	}
	attempt, established, failed := udp, udp, udp
	attempt.Attempts, established.Established, failed.Failed = 1, 1, 1
	for name, test := range map[string]struct {
		recorded string
		want     []Connection
	}{
		"nothing":                       {"", nil},
		"readings, some empty":          {"[]\n[" + recordedRow + "]\n[]\n[" + recordedRow + "," + recordedRow + "]\n", []Connection{row1, row1, row1}},
		"rows without arrays":           {recordedRow + "\n" + recordedRow, []Connection{row1, row1}},
		"events of network":             {event("attempt", "coredns") + "\n" + event("", "coredns"), []Connection{attempt, attempt}},
		"what became of attempts":       {event("established", "coredns") + event("failed", "coredns") + event("closed", "coredns"), []Connection{established, failed, established}},
		"rows and events in one stream": {"[" + recordedRow + "]" + event("attempt", "coredns"), []Connection{row1, attempt}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Read(strings.NewReader(test.recorded))
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestSaysWhatIsNoRecording(t *testing.T) {
	for name, test := range map[string]struct{ recorded, want string }{
		"no JSON":            {"CONTAINER COMM", "value 1: not JSON as -o json prints it: invalid character 'C' looking for beginning of value"},
		"cut off":            {"[]\n[{\"comm\":", "value 2: it ends in the middle of a value: was the recording cut off?"},
		"another gadget's":   {`[` + recordedRow + `,{"comm":"x"}]`, "value 1, row 2: it has no egress or no endpoint: not a row of connections, nor an event of network"},
		"a number":           {"7", "value 1, row 1: it is a number: not a row of connections, nor an event of network"},
		"a port of letters":  {strings.Replace(recordedRow, "5432", `"http"`, 1), "value 1, row 1: endpoint.port is a string: not a row of connections, nor an event of network"},
		"another protocol":   {`{"egress":true,"endpoint":{"addr":"192.0.2.1","port":1,"proto":"SCTP"}}`, `value 1, row 1: endpoint.proto "SCTP" is neither TCP nor UDP`},
		"no address":         {`{"egress":true,"endpoint":{"addr":"","port":1,"proto":"TCP"}}`, "value 1, row 1: endpoint.addr is empty"},
		"no address at all":  {`{"egress":true,"endpoint":{"addr":"web","port":1,"proto":"TCP"}}`, `value 1, row 1: endpoint.addr "web" is not an IP address`},
		"labels of no shape": {strings.Replace(recordedRow, "app=web", "app", 1), `value 1, row 1: k8s.podLabels "app,pod-template-hash=5d8f" is not key=value,…`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(strings.NewReader(test.recorded))
			require.EqualError(t, err, test.want)
		})
	}
}
