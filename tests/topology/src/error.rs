use std::{fmt, io};

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused an operation.
    #[error("{what}: {source}{}", hint(.source))]
    Os {
        /// The operation and the namespace or link that it concerned.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The builder was asked for something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The network stands but does not become usable.
    #[error("not ready after {seconds} s: {what}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The links and addresses that are not up.
        what: String,
    },
}

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn os(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what: what.to_string(), source }
    }

    /// The same for the error type of `nix`.
    pub(crate) fn errno(what: impl fmt::Display) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self::os(what)(errno.into())
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Os { source, .. } => source.kind(),
            Error::Invalid(_) => io::ErrorKind::InvalidInput,
            Error::NotReady { .. } => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (network namespaces need root, or CAP_SYS_ADMIN with CAP_NET_ADMIN and CAP_NET_RAW)"
        }
        Some(libc::EOPNOTSUPP) => " (does the kernel have it? modules: veth, bridge, vxlan)",
        _ => "",
    }
}
