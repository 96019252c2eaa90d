//! Objects that are no policies: namespaces, pods and what makes them, services, nodes.
