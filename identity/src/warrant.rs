//! Warrants: a user's own signed order, which a manager carries to an agent.
//!
//! The agent acts on what the user signed, not on what the manager says, so a hacked manager can do
//! no more than deliver an order late or not at all. The signature covers the token's id as well:
//! the order cannot be put under another, wider token of the same user. Delivering it twice is for
//! the order itself to guard against, by an id and a deadline in it.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Domain, Envelope, EnvelopeError, Grant, Identity, NodeId, Token, TokenError, TokenId,
    VerifyContext,
};

/// An order, and the token that allows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warrant {
    /// What its signer may do.
    pub token: Token,
    /// What the signer wants done, bound to the token.
    pub order: Envelope,
}

/// Why a warrant does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WarrantError {
    /// The token does not hold, or is not the signer's.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The order is not properly signed, or of another type.
    #[error("the order of the warrant is not valid")]
    Order(#[from] EnvelopeError),
    /// The order was signed for use with another token.
    #[error("the order was signed for another token")]
    OtherToken,
}

impl Warrant {
    /// Signs `order` for use with `token`, which must be the user's own.
    pub fn seal(
        user: &Identity,
        token: Token,
        order: &impl Serialize,
    ) -> Result<Self, EnvelopeError> {
        let order = Envelope::seal(user, &Domain::WARRANT, &(token.id(), order))?;
        Ok(Self { token, order })
    }

    /// What the signer may do, and who that is. Whether the order is within it is for the caller to
    /// check on the grant, with the order's own content.
    pub fn verify(&self, context: &VerifyContext<'_>) -> Result<(Grant, NodeId), WarrantError> {
        let signer = self.order.signer();
        if signer != self.token.claims().subject {
            return Err(WarrantError::Token(TokenError::WrongSubject {
                expected: self.token.claims().subject,
                actual: signer,
            }));
        }
        let grant = self.token.verify(context)?;
        let body = self.order.verified_body(&Domain::WARRANT);
        let body = body.map_err(EnvelopeError::Signature)?;
        match postcard::take_from_bytes::<TokenId>(body) {
            Ok((id, _)) if id == grant.id() => Ok((grant, signer)),
            _ => Err(WarrantError::OtherToken),
        }
    }

    /// The order, once its signature and its binding to the token are checked. Says nothing about
    /// whether the token holds: that is [`Warrant::verify`].
    pub fn open<T: DeserializeOwned>(&self) -> Result<T, WarrantError> {
        let (id, order): (TokenId, T) = self.order.open(&Domain::WARRANT)?;
        if id != self.token.id() {
            return Err(WarrantError::OtherToken);
        }
        Ok(order)
    }
}
