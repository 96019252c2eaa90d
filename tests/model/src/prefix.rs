use std::{fmt, net::IpAddr};

/// A range of addresses written as an address and the number of its leading bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// Any address of the range.
    pub address: IpAddr,
    /// Leading bits that count.
    pub len: u8,
}

impl Prefix {
    /// # Panics
    /// If `text` is no prefix; it is for literals.
    #[must_use]
    pub fn literal(text: &str) -> Self {
        let (address, len) = text.split_once('/').expect("address/length");
        Self { address: address.parse().expect("address"), len: len.parse().expect("length") }
    }

    /// Whether the address lies in it. A family never holds addresses of the other.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (mine, theirs) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.octets().to_vec(), b.octets().to_vec()),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.octets().to_vec(), b.octets().to_vec()),
            _ => return false,
        };
        (0..usize::from(self.len)).all(|bit| {
            let mask = 0x80 >> (bit % 8);
            mine[bit / 8] & mask == theirs[bit / 8] & mask
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_count() {
        for (prefix, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.128/25", "192.0.2.127", false),
            ("192.0.2.128/25", "192.0.2.128", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8:5::/48", "2001:db8:5:ffff::1", true),
            ("2001:db8:5::/48", "2001:db8:6::1", false),
            ("192.0.2.1/32", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.0", false),
        ] {
            assert_eq!(Prefix::literal(prefix).contains(address.parse().unwrap()), inside, "{address} in {prefix}");
        }
    }
}
