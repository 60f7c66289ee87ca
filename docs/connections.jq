# SPDX-License-Identifier: Apache-2.0
#
# Draws who called whom in a cluster, and how it ended: green was established, red has failed, grey has no outcome (UDP).
#
#   kubectl gadget run network:latest -A --lifecycle -o json >events.jsonl    # until Ctrl-C
#   jq -rsf docs/connections.jq events.jsonl | dot -Tsvg >connections.svg

# A node of the picture: a pod or a service in its namespace, or an address.
def pod: {kind: "pod", namespace: .namespace, name: .podName};
def id: "\(.kind) \(.namespace)/\(.name)" | @json;
def shape: {pod: "box", svc: "hexagon", address: "plaintext"}[.kind];

# IG knows a pod by the first of its addresses alone; events of its own tell the others.
def addresses: map({key: (if .egress then .src else .dst end).addr, value: (.k8s | pod)}) | from_entries;
def peer($pods):
  if .k8s.kind != "raw" then .k8s | {kind, namespace, name}
  else $pods[.addr] // {kind: "address", namespace: "", name: .addr} end;

# Edges: what pods called, and what called them from elsewhere than a pod.
def edges:
  addresses as $pods
  | map(
      (.endpoint | peer($pods)) as $peer
      | if .egress then {from: (.k8s | pod), to: $peer}
        elif $peer.kind == "address" then {from: $peer, to: (.k8s | pod)}
        else empty end
      + {port: .endpoint.port, protocol, event, error, cause})
  | group_by([.from, .to, .port, .protocol])
  | map(first + {
      ok: any(.event == "established"),
      failed: (map(select(.event == "failed")) | first)
    });

def draw:
  [.from, .to | id] as [$from, $to]
  | (if .failed then ["firebrick", "\\n\(.failed.error) (\(.failed.cause))"]
     elif .ok then ["darkgreen", ""] else ["gray40", ""] end) as [$colour, $how]
  | "  \($from) -> \($to) [label=\"\(.protocol) \(.port)\($how)\", color=\($colour), fontcolor=\($colour)];";

map(select(.k8s.podName != "" and .src.addr != .dst.addr)) # not what a pod says to itself
| edges
| . as $edges
| [.[] | .from, .to] | unique
| "digraph connections {",
  "  rankdir=LR; ranksep=1.6; nodesep=0.35; labeljust=l; fontname=\"sans-serif\"; node [fontname=\"sans-serif\", fontsize=11]; edge [fontname=\"sans-serif\", fontsize=9];",
  (group_by(.namespace)[]
   | (first.namespace) as $namespace
   | if $namespace != "" then "  subgraph \("cluster_" + $namespace | @json) { label=\($namespace | @json); color=gray70; style=rounded;" else empty end,
     (.[] | "    \(id) [label=\(.name | @json), shape=\(shape)];"),
     if $namespace != "" then "  }" else empty end),
  ($edges[] | draw),
  "}"
