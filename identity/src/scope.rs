//! What a token allows one to do: scopes, as a small set.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Scope {
    /// Be a member of the mesh; the resource is [`MESH_PATH`](crate::MESH_PATH).
    Join,
    /// Describe oneself to the mesh; the resource is [`MESH_PATH`](crate::MESH_PATH).
    Announce,
    /// Call RPC methods; the resource is `service/method`.
    Call,
    /// Publish on channels; the resource is the channel's name.
    Publish,
    /// Subscribe to channels; the resource is the channel's name.
    Subscribe,
    /// Pass a part of this token on, while its depth lasts.
    Delegate,
    /// Everything above, on what the resource pattern covers, and revoking, for which the resource
    /// is [`MESH_PATH`](crate::MESH_PATH).
    Admin,
}

impl Scope {
    /// All scopes, in their printed order.
    pub const ALL: [Self; 7] = [
        Self::Join,
        Self::Announce,
        Self::Call,
        Self::Publish,
        Self::Subscribe,
        Self::Delegate,
        Self::Admin,
    ];

    /// The scope's name as printed and parsed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Announce => "announce",
            Self::Call => "call",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Delegate => "delegate",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u16 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.name() == text)
            .ok_or_else(|| ScopeError(text.chars().take(32).collect()))
    }
}

/// No scope has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no scope {0:?}; the scopes are join, announce, call, publish, subscribe, delegate, admin"
)]
pub struct ScopeError(String);

/// A set of scopes. Decoding refuses bits that no scope of this version has: an unknown right must
/// not be passed on unread.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Scopes(u16);

impl Scopes {
    /// No scope.
    pub const NONE: Self = Self(0);

    /// Every scope.
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Adds one.
    pub fn insert(&mut self, scope: Scope) {
        self.0 |= scope.bit();
    }

    /// Whether the set names this scope. [`Scopes::allows`] is the question to ask for a permission.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether the set permits this scope: it names it, or it names [`Scope::Admin`].
    pub fn allows(self, scope: Scope) -> bool {
        self.effective().contains(scope)
    }

    /// Whether everything that this set permits, the other permits too.
    pub fn is_subset_of(self, other: Self) -> bool {
        self.effective().0 & !other.effective().0 == 0
    }

    /// Whether there is no scope in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes that the set names, in their printed order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |s| self.contains(*s))
    }

    /// The set with what [`Scope::Admin`] implies.
    fn effective(self) -> Self {
        if self.contains(Scope::Admin) {
            Self::all()
        } else {
            self
        }
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut set = Self::NONE;
        scopes.into_iter().for_each(|scope| set.insert(scope));
        set
    }
}

impl<const N: usize> From<[Scope; N]> for Scopes {
    fn from(scopes: [Scope; N]) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<Scopes> for u16 {
    fn from(scopes: Scopes) -> Self {
        scopes.0
    }
}

impl TryFrom<u16> for Scopes {
    type Error = ScopeError;

    fn try_from(bits: u16) -> Result<Self, ScopeError> {
        match bits & !Self::all().0 {
            0 => Ok(Self(bits)),
            unknown => Err(ScopeError(format!("bits {unknown:#x}"))),
        }
    }
}

/// `call,publish`, in fixed order; nothing for the empty set.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Scope::name).collect();
        f.pad(&names.join(","))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({self})")
    }
}

/// Names with commas between, in any order. The empty text is refused: a token for nothing is a
/// mistake.
impl FromStr for Scopes {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        text.split(',').map(|name| name.trim().parse()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        let set: Scopes = "publish, call".parse().unwrap();
        assert_eq!(set.to_string(), "call,publish");
        assert!("".parse::<Scopes>().is_err());
        assert!("call,fly".parse::<Scopes>().is_err());
    }

    #[test]
    fn admin_permits_all_and_only_admin_permits_admin() {
        let admin = Scopes::from([Scope::Admin]);
        assert!(Scope::ALL.into_iter().all(|scope| admin.allows(scope)));
        let rest: Scopes = Scope::ALL
            .into_iter()
            .filter(|s| *s != Scope::Admin)
            .collect();
        assert!(rest.is_subset_of(admin));
        assert!(!admin.is_subset_of(rest));
        assert!(!rest.allows(Scope::Admin));
    }

    #[test]
    fn unknown_bits_do_not_decode() {
        assert!(postcard::from_bytes::<Scopes>(&postcard::to_allocvec(&0x7fu16).unwrap()).is_ok());
        assert!(postcard::from_bytes::<Scopes>(&postcard::to_allocvec(&0x80u16).unwrap()).is_err());
    }
}
