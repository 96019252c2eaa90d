{{/* Parts of the schemas of Intent and Guard. A pattern is all that can be written; the rule before it says in words how it looks. */}}

{{- define "bulkhead.port" -}}
([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])
{{- end }}

{{- define "bulkhead.ports" -}}
(any|echo/icmp|proto/(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])|{{ include "bulkhead.port" . }}(-{{ include "bulkhead.port" . }})?(/(tcp|udp|sctp))?|([0-9][0-9-]*)?[a-z]([0-9a-z-]*[0-9a-z])?)
{{- end }}

{{- define "bulkhead.name" -}}
[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?
{{- end }}

{{- define "bulkhead.key" -}}
([a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?{{ include "bulkhead.name" . }}
{{- end }}

{{- define "bulkhead.lines" -}}
type: array
maxItems: 128
items:
  type: string
  maxLength: 191
  pattern: ^{{ include "bulkhead.name" . }}(/{{ include "bulkhead.name" . }})?:{{ include "bulkhead.ports" . }}$
  x-kubernetes-validations:
    - rule: self.matches('^[^:]+:[^:]{1,63}$')
      message: 'write a peer and its port, such as cart:8080, ops/backup:5432, world:443, streamer:8000-8099/udp or cart:any; an address gets a name in external'
    {{- include "bulkhead.no-address" . | nindent 4 }}
{{- end }}

{{- define "bulkhead.no-address" -}}
- rule: "!isIP(self.split(':')[0]) && !isCIDR(self.split(':')[0])"
  message: an address gets a name in external, by which it is called here
{{- end }}

{{- /* Of the names that have meanings of their own. */}}
{{- define "bulkhead.externals" -}}
type: object
description: Peers without a container, by the name that lines and reports use.
maxProperties: 64
x-kubernetes-validations:
  - rule: self.all(name, !(name in [{{ range $at, $name := . }}{{ if $at }}, {{ end }}'{{ $name }}'{{ end }}]))
    message: {{ initial . | join ", " }} and {{ last . }} have meanings of their own and cannot be names
  {{- include "bulkhead.named" . | nindent 2 }}
additionalProperties:
  type: object
  required: [cidrs]
  properties:
    cidrs:
      description: Prefixes; an address in any of them belongs.
      minItems: 1
      {{- include "bulkhead.cidrs" . | nindent 6 }}
    except:
      description: Prefixes inside of them whose addresses do not belong all the same.
      {{- include "bulkhead.cidrs" . | nindent 6 }}
{{- end }}

{{- define "bulkhead.named" -}}
- rule: self.all(name, name.matches('^{{ include "bulkhead.name" . }}$'))
  message: 'names are 1 to 63 letters, digits, "-", "_" or ".", a letter or digit at both ends'
{{- end }}

{{- define "bulkhead.cidrs" -}}
type: array
maxItems: 64
items:
  type: string
  maxLength: 49
  x-kubernetes-validations:
    - rule: isIP(self) || isCIDR(self) && cidr(self) == cidr(self).masked()
      message: 'write a prefix without bits behind its length, such as 198.51.100.0/24 or 2001:db8::/32'
{{- end }}

{{- define "bulkhead.labels" -}}
type: object
minProperties: 1
maxProperties: 32
x-kubernetes-validations:
  - rule: self.all(key, key.matches('^{{ include "bulkhead.key" . }}$'))
    message: a label cannot have this key
additionalProperties:
  type: string
  maxLength: 63
  pattern: ^({{ include "bulkhead.name" . }})?$
{{- end }}

{{- define "bulkhead.match" -}}
type: object
x-kubernetes-validations:
  - rule: has(self.from) != has(self.to)
    message: 'a rule has one of from (traffic to whom the Guard concerns) and to (traffic from them); write two rules for both'
  - rule: '!has(self.ports) || ((!has(self.from) || self.from.all(peer, !peer.contains(":"))) && (!has(self.to) || self.to.all(peer, !peer.contains(":"))))'
    message: a peer has a port of its own, and its rule has ports; keep one of the two
properties:
  from:
    {{- include "bulkhead.peers" . | nindent 4 }}
  to:
    {{- include "bulkhead.peers" . | nindent 4 }}
  ports:
    type: array
    description: Ports on the side that listens; left out, every port and protocol.
    minItems: 1
    maxItems: 64
    items:
      x-kubernetes-int-or-string: true
      minimum: 1
      maximum: 65535
      maxLength: 63
      pattern: ^{{ include "bulkhead.ports" . }}$
  mode:
    type: string
    description: "`audit` reports and lets pass."
    enum: [enforce, audit]
  expires:
    type: string
    description: End of the rule, with an offset; the kernel keeps to it.
    format: date-time
    maxLength: 40
    pattern: ^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$
    x-kubernetes-validations:
      - rule: self >= timestamp('1970-01-01T00:00:00Z') && self <= timestamp('2554-07-21T23:34:33.709551615Z')
        message: 'write 2027-01-31T12:00:00Z, or with an offset 2027-01-31T13:00:00+01:00; until 2554'
{{- end }}

{{- define "bulkhead.peers" -}}
type: array
description: Peers, each alone or with a port behind it.
minItems: 1
maxItems: 64
items:
  type: string
  maxLength: 191
  pattern: ^{{ include "bulkhead.name" . }}(/{{ include "bulkhead.name" . }})?(:{{ include "bulkhead.ports" . }})?$
  x-kubernetes-validations:
    - rule: self.matches('^[^:]+(:[^:]{1,63})?$')
      message: 'write same, other, any, namespace/service, world, node, nodes, metadata, cluster or an external, alone or with a port: node:22'
    {{- include "bulkhead.no-address" . | nindent 4 }}
{{- end }}

{{- define "bulkhead.status" -}}
type: object
description: Written by one of the agents, never by people.
properties:
  observedGeneration:
    type: integer
    format: int64
    description: Generation of the object that this is about.
  published:
    type: string
    description: Nodes where it is in force, and nodes that have an agent.
    maxLength: 32
  conditions:
    type: array
    maxItems: 8
    x-kubernetes-list-type: map
    x-kubernetes-list-map-keys: [type]
    items:
      type: object
      required: [type, status, reason, message, lastTransitionTime]
      properties:
        type: { type: string, maxLength: 316 }
        status: { type: string, enum: ["True", "False", Unknown] }
        observedGeneration: { type: integer, format: int64, minimum: 0 }
        lastTransitionTime: { type: string, format: date-time }
        reason: { type: string, minLength: 1, maxLength: 1024 }
        message: { type: string, maxLength: 32768 }
{{- end }}
