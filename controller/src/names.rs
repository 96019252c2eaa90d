//! Names of what is in a namespace. They stand in many tables of a large cluster, so that each is kept once and shared.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Qualified {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for Qualified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

macro_rules! shared {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "Qualified", into = "Qualified")]
        pub struct $name(Arc<Qualified>);

        impl $name {
            /// A name.
            #[must_use]
            pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
                Qualified { namespace: namespace.into(), name: name.into() }.into()
            }
        }

        impl Deref for $name {
            type Target = Qualified;

            fn deref(&self) -> &Qualified {
                &self.0
            }
        }

        impl From<Qualified> for $name {
            fn from(name: Qualified) -> Self {
                Self(Arc::new(name))
            }
        }

        impl From<$name> for Qualified {
            fn from(name: $name) -> Self {
                Arc::unwrap_or_clone(name.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).field("namespace", &self.namespace).field("name", &self.name).finish()
            }
        }
    };
}

shared! {
    /// Namespace and name of a workload.
    WorkloadName
}

shared! {
    /// Namespace and name of a service.
    ServiceName
}

impl From<&WorkloadName> for ServiceName {
    fn from(name: &WorkloadName) -> Self {
        Self(Arc::clone(&name.0))
    }
}

impl From<&ServiceName> for WorkloadName {
    fn from(name: &ServiceName) -> Self {
        Self(Arc::clone(&name.0))
    }
}

/// Namespace and name of a `NetworkPolicy`.
pub type PolicyName = ServiceName;
