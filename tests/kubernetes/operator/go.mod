// The definition of a ServiceMonitor comes with this: nothing of it is built. A module of its own, since what it needs would change how Kubernetes is built.
module bulkhead/tests/kubernetes/operator

go 1.25.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
