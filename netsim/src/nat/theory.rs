//! Which hosts can reach each other directly, from first principles.
//!
//! Two hosts sit behind translators, one inside the other, at different sites. Each has asked a
//! helper on the internet under which address it is seen (its *reflexive* address, which is its own
//! where there is no translator), and has told the other. Then both send to all addresses of the
//! other that they know, at the same time and again and again; an address from which something
//! arrives is one more that they know ("peer reflexive", RFC 8445 §7.2.5.3.1). Ports are not guessed,
//! and time is long enough for everything but mappings to expire.
//!
//! What follows is decided by two rules:
//!
//! 1. **Mapping.** A translator gives two destinations the same outside address if and only if they
//!    agree in what its mapping depends on. Through a chain of translators they get the same one if
//!    and only if they agree at every level, because what differs further in is a different inside
//!    address further out.
//! 2. **Filtering.** A translator lets a datagram in if and only if the host has sent, through the
//!    mapping that it arrives at, to an address that agrees with its source in what the filter depends
//!    on. "Through that mapping" means to a destination that agrees at this level and all further in.
//!
//! A direct path is an address that one sends to and gets answers from: the other's packets must come
//! from where it is dialled (RFC 8445 §7.2.5.2.1).

use std::collections::BTreeSet;

use super::{Dependence, NatModel};

/// More rounds of sending than any pair needs: one to open, one for what was learnt, and one for
/// what was learnt from that.
const ROUNDS: usize = 4;

/// Whether hosts behind `a` and behind `b` can reach each other directly: the translators of each from
/// the host outwards, none for a host on the internet. Translators that both share are not meant: there
/// the outermost one's hairpin decides.
pub fn direct_possible(a: &[NatModel], b: &[NatModel]) -> bool {
    let helper = Address {
        site: Site::Helper,
        port: Vec::new(),
    };
    let mut a = Host::new(Site::A, a, &helper);
    let mut b = Host::new(Site::B, b, &helper);
    let (reflexive_a, reflexive_b) = (a.outside(&helper), b.outside(&helper));
    a.sent.insert(reflexive_b);
    b.sent.insert(reflexive_a);
    for _ in 0..ROUNDS {
        if connected(&a, &b) {
            return true;
        }
        let (to_a, to_b) = (b.heard_by(&a), a.heard_by(&b));
        a.sent.extend(to_a);
        b.sent.extend(to_b);
    }
    connected(&a, &b)
}

/// Whose outside IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    A,
    B,
    Helper,
}

/// An outside address. Instead of the number of a port, it holds what all destinations have in common
/// that get it: two are the same port exactly if these agree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    site: Site,
    port: Vec<Matter>,
}

/// As much of a destination as one translator cares for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Nothing,
    Ip(Site),
    Address(Box<Address>),
}

impl Matter {
    fn of(dependence: Dependence, to: &Address) -> Self {
        match dependence {
            Dependence::EndpointIndependent => Self::Nothing,
            Dependence::AddressDependent => Self::Ip(to.site),
            Dependence::AddressPortDependent => Self::Address(Box::new(to.clone())),
        }
    }
}

struct Host<'a> {
    site: Site,
    /// From the host outwards.
    nats: &'a [NatModel],
    /// To whom it has sent, and goes on sending.
    sent: BTreeSet<Address>,
}

impl<'a> Host<'a> {
    fn new(site: Site, nats: &'a [NatModel], helper: &Address) -> Self {
        Self {
            site,
            nats,
            sent: BTreeSet::from([helper.clone()]),
        }
    }

    /// Rule 1: under which address what goes to `to` is seen.
    fn outside(&self, to: &Address) -> Address {
        let matters = self.nats.iter().map(|nat| Matter::of(nat.mapping, to));
        Address {
            site: self.site,
            port: matters.collect(),
        }
    }

    /// Rule 2: whether a datagram from `source` to our address `at` comes through.
    fn admits(&self, source: &Address, at: &Address) -> bool {
        let through: Vec<_> = self
            .sent
            .iter()
            .map(|to| (to, self.outside(to).port))
            .collect();
        (0..self.nats.len()).all(|level| {
            let filter = self.nats[level].filtering;
            through.iter().any(|(to, port)| {
                port[..=level] == at.port[..=level]
                    && Matter::of(filter, to) == Matter::of(filter, source)
            })
        })
    }

    /// Our addresses from which something of ours arrives at `other`.
    fn heard_by(&self, other: &Host<'_>) -> Vec<Address> {
        let to_other = self.sent.iter().filter(|to| to.site == other.site);
        to_other
            .map(|to| (to, self.outside(to)))
            .filter(|(to, source)| other.admits(source, to))
            .map(|(_, source)| source)
            .collect()
    }
}

/// Whether there is a pair of addresses over which both hear each other.
fn connected(a: &Host<'_>, b: &Host<'_>) -> bool {
    a.sent.iter().filter(|to| to.site == b.site).any(|at_b| {
        let at_a = a.outside(at_b);
        b.sent.contains(&at_a)
            && b.outside(&at_a) == *at_b
            && b.admits(&at_a, at_b)
            && a.admits(at_b, &at_a)
    })
}

#[cfg(test)]
mod tests {
    use Dependence::{
        AddressDependent as Ad, AddressPortDependent as Apd, EndpointIndependent as Ei,
    };

    use super::*;

    fn possible(a: (Dependence, Dependence), b: (Dependence, Dependence)) -> bool {
        let (a, b) = (NatModel::new(a.0, a.1), NatModel::new(b.0, b.1));
        let one = direct_possible(&[a], &[b]);
        assert_eq!(one, direct_possible(&[b], &[a]), "it goes both ways");
        one
    }

    #[test]
    fn what_every_textbook_says() {
        let (full, restricted, port_restricted, symmetric) =
            ((Ei, Ei), (Ei, Ad), (Ei, Apd), (Apd, Apd));
        for cone in [full, restricted, port_restricted] {
            for other in [full, restricted, port_restricted] {
                assert!(possible(cone, other));
            }
        }
        assert!(possible(symmetric, full) && possible(symmetric, restricted));
        assert!(!possible(symmetric, port_restricted) && !possible(symmetric, symmetric));
    }

    #[test]
    fn who_has_no_translator_is_reached_by_all() {
        for model in NatModel::kinds() {
            assert!(direct_possible(&[], &[model]), "{model}");
            assert!(direct_possible(&[model, model], &[]), "{model} twice");
        }
        assert!(direct_possible(&[], &[]));
    }

    #[test]
    fn a_chain_is_as_closed_as_its_parts() {
        let (home, symmetric) = (NatModel::home(), NatModel::symmetric());
        let carrier = NatModel::carrier();
        assert!(direct_possible(&[home, carrier], &[home, carrier]));
        assert!(!direct_possible(&[home, symmetric], &[home]));
        assert!(direct_possible(&[home, symmetric], &[carrier]));
        // Filtering hides the outer mapping that is the only one known.
        assert!(!direct_possible(&[symmetric, carrier], &[home]));
    }
}
