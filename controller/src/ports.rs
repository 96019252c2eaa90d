//! Ports and protocols as people write them, and the axes of the dataplane that they stand for.

use std::fmt;

use bulkhead_ebpf::abi::Class;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The class whose axis is this protocol's destination port.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Tcp => Class::Tcp,
            Self::Udp => Class::Udp,
            Self::Sctp => Class::Sctp,
        }
    }

    /// IP protocol number.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            _ => return None,
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What a line says behind the colon. Its text is canonical: `443` and `443/tcp` print the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every protocol and port.
    Any,
    /// Destination ports `first..=last`, neither of them 0.
    Range {
        /// Protocol.
        transport: Transport,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// Echo requests of ICMP and ICMPv6.
    Echo,
    /// An IP protocol by number, with all of its ports or types.
    Protocol(u8),
    /// A port that the workload which listens on it names.
    Named {
        /// Its name.
        name: String,
        /// Its protocol, where not every one will do.
        transport: Option<Transport>,
    },
}

/// A stretch `first..=last` of the axis of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Class.
    pub class: Class,
    /// First value.
    pub first: u16,
    /// Last value.
    pub last: u16,
}

impl Stretch {
    const fn whole(class: Class) -> Self {
        Self { class, first: 0, last: u16::MAX }
    }
}

/// Type << 8 | code of an echo request of ICMP.
pub const ECHO4: u16 = 8 << 8;
/// Type << 8 | code of an echo request of ICMPv6.
pub const ECHO6: u16 = 128 << 8;

impl Ports {
    /// One port.
    #[must_use]
    pub const fn one(transport: Transport, port: u16) -> Self {
        Self::Range { transport, first: port, last: port }
    }

    /// A port by its name, whatever its protocol.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self::Named { name: name.to_owned(), transport: None }
    }

    /// Parses `443`, `53/udp`, `8000-8099`, `echo/icmp`, `proto/89`, `any` or a port's name.
    ///
    /// # Errors
    /// What is wrong, and how to mend it.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let (what, protocol) = text.split_once('/').map_or((text, None), |(what, protocol)| (what, Some(protocol)));
        match (what, protocol) {
            ("", _) => {
                return Err(("the port is missing".to_owned(), "write a port such as `:8080`, or `:any`".to_owned()));
            }
            ("any", None) => return Ok(Self::Any),
            ("any", Some(protocol)) => {
                return Err((
                    format!("`any/{protocol}` is not a port"),
                    format!("`any` is every protocol; for every port of one write `1-65535/{protocol}`"),
                ));
            }
            ("echo", Some("icmp")) => return Ok(Self::Echo),
            ("proto", Some(number)) => {
                let wrong = || {
                    (
                        format!("`{number}` is not an IP protocol number"),
                        "protocol numbers are 0 to 255, such as `proto/89`".to_owned(),
                    )
                };
                return decimal(number)
                    .and_then(|number| u8::try_from(number).ok())
                    .map(Self::Protocol)
                    .ok_or_else(wrong);
            }
            _ => {}
        }
        let transport = match protocol {
            None => Transport::Tcp,
            Some(name) => Transport::parse(name).ok_or_else(|| {
                (
                    format!("`{name}` is not a protocol with ports"),
                    "write `/tcp`, `/udp` or `/sctp`; or `echo/icmp`, `proto/89`".to_owned(),
                )
            })?,
        };
        if what.starts_with(|c: char| c.is_ascii_digit()) && what.chars().all(|c| c.is_ascii_digit() || c == '-') {
            let (first, last) = what.split_once('-').unwrap_or((what, what));
            let port = |text: &str| {
                port_number(text).ok_or_else(|| {
                    (format!("`{text}` is not a port"), "ports are 1 to 65535, a range is `8000-8099`".to_owned())
                })
            };
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err((format!("the range {first}-{last} is empty"), format!("write `{last}-{first}`")));
            }
            return Ok(Self::Range { transport, first, last });
        }
        if protocol.is_some() {
            return Err((
                format!("`{what}` is not a port number"),
                "a port's name has its protocol from the workload: leave out what follows `/`".to_owned(),
            ));
        }
        if !port_name(what) {
            let help = "write a port, `53/udp`, `8000-8099`, `echo/icmp`, `proto/89`, a port's name (small letters, digits, `-`), or `any`";
            return Err((format!("`{what}` is not a port"), help.to_owned()));
        }
        Ok(Self::named(what))
    }

    /// What it stands for. Empty for a named port, which only a workload can resolve.
    #[must_use]
    pub fn stretches(&self) -> Vec<Stretch> {
        match *self {
            Self::Any => Class::ALL.into_iter().map(Stretch::whole).collect(),
            Self::Range { transport, first, last } => vec![Stretch { class: transport.class(), first, last }],
            Self::Echo => vec![
                Stretch { class: Class::Icmp, first: ECHO4, last: ECHO4 },
                Stretch { class: Class::Icmp6, first: ECHO6, last: ECHO6 },
            ],
            Self::Protocol(number) => vec![match class_of(number) {
                Class::Other => Stretch { class: Class::Other, first: number.into(), last: number.into() },
                class => Stretch::whole(class),
            }],
            Self::Named { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Range { transport, first, last } if first == last => write!(f, "{first}/{transport}"),
            Self::Range { transport, first, last } => write!(f, "{first}-{last}/{transport}"),
            Self::Echo => f.write_str("echo/icmp"),
            Self::Protocol(number) => write!(f, "proto/{number}"),
            Self::Named { name, transport: None } => f.write_str(name),
            Self::Named { name, transport: Some(transport) } => write!(f, "{name}/{transport}"),
        }
    }
}

/// Class of an IP protocol.
#[must_use]
pub const fn class_of(protocol: u8) -> Class {
    match protocol {
        6 => Class::Tcp,
        17 => Class::Udp,
        132 => Class::Sctp,
        1 => Class::Icmp,
        58 => Class::Icmp6,
        _ => Class::Other,
    }
}

/// Point on the axis of a class as text, as it would be written in a policy where it can: `5432/tcp`, `echo/icmp`, `icmp type 3 code 1`.
#[must_use]
pub fn point(class: Class, value: u16) -> String {
    match class {
        Class::Tcp => format!("{value}/tcp"),
        Class::Udp => format!("{value}/udp"),
        Class::Sctp => format!("{value}/sctp"),
        Class::Icmp if value == ECHO4 => "echo/icmp".to_owned(),
        Class::Icmp6 if value == ECHO6 => "echo/icmp".to_owned(),
        Class::Icmp => format!("icmp type {} code {}", value >> 8, value & 0xff),
        Class::Icmp6 => format!("icmp6 type {} code {}", value >> 8, value & 0xff),
        Class::Other => format!("proto/{value}"),
    }
}

/// Parses the port of a workload's named port: `8080` or `53/udp`.
pub(crate) fn listening(text: &str) -> Option<(Transport, u16)> {
    match Ports::parse(text) {
        Ok(Ports::Range { transport, first, last }) if first == last => Some((transport, first)),
        _ => None,
    }
}

/// Parses a port's number.
pub(crate) fn port_number(text: &str) -> Option<u16> {
    decimal(text).and_then(|number| u16::try_from(number).ok()).filter(|&number| number > 0)
}

/// Whether a port may have this name.
pub(crate) fn port_name(text: &str) -> bool {
    text != "any"
        && (1..=63).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && text.contains(|c: char| c.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A number without sign or space; leading zeros are refused because some would read them as octal.
pub(crate) fn decimal(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text_is_stable() {
        for (written, canonical) in [
            ("443", "443/tcp"),
            ("443/tcp", "443/tcp"),
            ("53/udp", "53/udp"),
            ("8000-8099", "8000-8099/tcp"),
            ("7-7/sctp", "7/sctp"),
            ("echo/icmp", "echo/icmp"),
            ("proto/89", "proto/89"),
            ("any", "any"),
            ("http-alt", "http-alt"),
            ("8080-alt", "8080-alt"),
        ] {
            let parsed = Ports::parse(written).unwrap_or_else(|(what, help)| panic!("{written}: {what}; {help}"));
            assert_eq!(parsed.to_string(), canonical);
            assert_eq!(Ports::parse(canonical), Ok(parsed), "{canonical} reads back as the same");
        }
    }

    #[test]
    fn what_is_not_a_port_is_refused() {
        for wrong in [
            "",
            "0",
            "65536",
            "08",
            "80-",
            "-80",
            "90-80",
            "1-2-3",
            "80/",
            "80/icmp",
            "any/tcp",
            "proto/256",
            "proto/",
            "echo/udp",
            "http/tcp",
            "HTTP",
            "a b",
            "+80",
            "80/TCP",
            "٣",
        ] {
            assert!(Ports::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn stretches_cover_what_the_words_say() {
        let of = |text: &str| Ports::parse(text).unwrap().stretches();
        assert_eq!(of("any").len(), Class::ALL.len());
        assert_eq!(of("proto/6"), [Stretch::whole(Class::Tcp)], "TCP by number is all of TCP");
        assert_eq!(of("proto/89"), [Stretch { class: Class::Other, first: 89, last: 89 }]);
        assert_eq!(of("echo/icmp").iter().map(|stretch| stretch.first).collect::<Vec<_>>(), [0x0800, 0x8000]);
        assert!(of("http").is_empty());
    }
}
