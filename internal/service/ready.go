// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready tells systemd that the service is up. Where systemd did not start this process, it does nothing.
func Ready() error {
	if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("telling systemd that all is watched: %w", err)
	}
	return nil
}
