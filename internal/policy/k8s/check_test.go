// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
)

func TestTellsWhatWouldBeBlocked(t *testing.T) {
	before := []policy.Connection{sent(web, postgres, 5432), received(database, as(web), 15432), sent(web, raw("2001:db8::5"), 443)}
	policies := policiesOf(before, nil)
	stranger := policy.Pod{Namespace: "shop", Name: "debug", Labels: map[string]string{"run": "debug"}, IP: addr("10.244.0.10")}
	for name, test := range map[string]struct {
		later   []policy.Connection
		blocked []string
		decided int
	}{
		"the same":                    {before, nil, 3},
		"another address":             {[]policy.Connection{sent(web, raw("2001:db8::6"), 443)}, []string{"shop/web-5d8f-a (client) -> 2001:db8::6 at 443/TCP: not in shop/web"}, 1},
		"another port":                {[]policy.Connection{sent(web, raw("2001:db8::5"), 80)}, []string{"shop/web-5d8f-a (client) -> 2001:db8::5 at 80/TCP: not in shop/web"}, 1},
		"another protocol":            {[]policy.Connection{overUDP(sent(web, raw("2001:db8::5"), 443))}, []string{"shop/web-5d8f-a (client) -> 2001:db8::5 at 443/UDP: not in shop/web"}, 1},
		"the other direction":         {[]policy.Connection{received(web, raw("2001:db8::5"), 443)}, []string{"shop/web-5d8f-a (server) <- 2001:db8::5 at 443/TCP: not in shop/web"}, 1},
		"another pod":                 {[]policy.Connection{received(database, as(stranger), 15432)}, []string{"db/postgres-0 (server) <- shop/debug at 15432/TCP: not in db/postgres"}, 1},
		"a Service's other port":      {[]policy.Connection{sent(web, postgres, 80), received(database, as(web), 8080)}, []string{"db/postgres-0 (server) <- shop/web-5d8f-a at 8080/TCP: not in db/postgres", "shop/web-5d8f-a (client) -> the Service db/postgres at 80/TCP (pods' 8080): not in shop/web"}, 2},
		"a pod without a policy":      {[]policy.Connection{sent(stranger, raw("2001:db8::6"), 443)}, nil, 1},
		"a port where nobody listens": {[]policy.Connection{ofNobody(received(web, raw("2001:db8::5"), 22))}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			// Twice: a reading each second tells of the same again.
			report, err := k8s.Check(policies, append(test.later, test.later...), nil)
			require.NoError(t, err)
			var got []string
			for _, b := range report.Blocked {
				got = append(got, b.String())
			}
			require.Equal(t, test.blocked, got)
			require.Equal(t, test.decided, report.Decided)
		})
	}
}
