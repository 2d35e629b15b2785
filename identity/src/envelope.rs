//! Signed envelopes: any value, who says it, and for which purpose.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::{
    Domain, Identity, NodeId, Signature, SignatureError,
    codec::{self, DecodeError},
};

/// Most bytes in the body of an envelope. Purposes with smaller limits check them on their own.
pub const MAX_ENVELOPE_BODY: usize = 256 * 1024;

/// A postcard-encoded value with its signer and the signature for one [`Domain`].
///
/// The bytes are kept as they were signed, so an envelope can be forwarded by nodes that do not
/// know all fields of its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    signer: NodeId,
    #[serde(deserialize_with = "codec::bounded_bytes::<_, MAX_ENVELOPE_BODY>")]
    body: Vec<u8>,
    signature: Signature,
}

/// Why an envelope was not made, or its content not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The content is larger than [`MAX_ENVELOPE_BODY`] (ours), or cannot be encoded.
    #[error("the content does not fit a signed envelope of {MAX_ENVELOPE_BODY} bytes")]
    TooLarge,
    /// The signer did not sign this content for this purpose.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Properly signed, but not a value of the wanted type.
    #[error("the signed content does not decode")]
    Decode(#[from] DecodeError),
}

impl Envelope {
    /// Encodes and signs `value`.
    pub fn seal(
        identity: &Identity,
        domain: &Domain,
        value: &impl Serialize,
    ) -> Result<Self, EnvelopeError> {
        let body = postcard::to_allocvec(value).map_err(|_| EnvelopeError::TooLarge)?;
        if body.len() > MAX_ENVELOPE_BODY {
            return Err(EnvelopeError::TooLarge);
        }
        Ok(Self {
            signer: identity.node_id(),
            signature: identity.sign(domain, &body),
            body,
        })
    }

    /// The content, once its signature for `domain` is checked. Bytes after it are refused.
    ///
    /// Whether the signer may say this is for the caller to ask.
    pub fn open<T: DeserializeOwned>(&self, domain: &Domain) -> Result<T, EnvelopeError> {
        Ok(codec::decode(self.verified_body(domain)?)?)
    }

    /// The encoded content, once its signature for `domain` is checked.
    pub fn verified_body(&self, domain: &Domain) -> Result<&[u8], SignatureError> {
        self.signer.verify(domain, &self.body, &self.signature)?;
        Ok(&self.body)
    }

    /// The encoded content as it came: anybody may have written it.
    pub fn unverified_body(&self) -> &[u8] {
        &self.body
    }

    /// Who claims to have signed; true once [`Envelope::open`] succeeded.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// Bytes of the encoded content.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    /// 64 bits of a hash over all of it, to tell envelopes apart.
    pub fn fingerprint(&self) -> u64 {
        let digest: [u8; 32] = Sha256::digest(self.encode()).into();
        let (first, _) = digest.split_at(8);
        u64::from_be_bytes(first.try_into().expect("eight bytes"))
    }

    /// Overwrites the content in memory: for envelopes that carry a secret. It opens no more.
    pub fn wipe(&mut self) {
        self.body.zeroize();
    }

    /// The envelope as bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// What [`Envelope::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode_canonical(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_for_one_purpose_opens_for_no_other() {
        let identity = Identity::from_seed(&[1; 32]);
        let envelope = Envelope::seal(&identity, &Domain::WARRANT, &(7u32, "run")).unwrap();
        assert_eq!(envelope.signer(), identity.node_id());
        assert_eq!(
            envelope.open::<(u32, String)>(&Domain::WARRANT),
            Ok((7, "run".to_owned()))
        );
        for other in Domain::ALL.iter().filter(|d| **d != Domain::WARRANT) {
            assert_eq!(
                envelope.open::<(u32, String)>(other),
                Err(EnvelopeError::Signature(SignatureError))
            );
        }
    }

    #[test]
    fn what_is_wiped_is_gone() {
        let identity = Identity::from_seed(&[1; 32]);
        let mut envelope = Envelope::seal(&identity, &Domain::PSK_ROTATION, &[7u8; 32]).unwrap();
        envelope.wipe();
        assert_eq!(envelope.body_len(), 0);
        assert!(envelope.open::<[u8; 32]>(&Domain::PSK_ROTATION).is_err());
    }

    #[test]
    fn content_of_another_type_is_refused() {
        let identity = Identity::from_seed(&[1; 32]);
        let envelope = Envelope::seal(&identity, &Domain::WARRANT, &[1u8, 2, 3]).unwrap();
        assert_eq!(
            envelope.open::<[u8; 2]>(&Domain::WARRANT),
            Err(EnvelopeError::Decode(DecodeError))
        );
    }

    #[test]
    fn the_size_is_bounded_on_both_sides() {
        let identity = Identity::from_seed(&[1; 32]);
        // The list's own length takes three bytes of the body.
        let most = vec![0u8; MAX_ENVELOPE_BODY - 3];
        let envelope = Envelope::seal(&identity, &Domain::WARRANT, &most).unwrap();
        assert_eq!(envelope.body_len(), MAX_ENVELOPE_BODY);
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        let more = vec![0u8; MAX_ENVELOPE_BODY];
        assert_eq!(
            Envelope::seal(&identity, &Domain::WARRANT, &more),
            Err(EnvelopeError::TooLarge)
        );
        let forged = codec::encode(&(identity.node_id(), vec![0u8; MAX_ENVELOPE_BODY + 1]));
        assert_eq!(Envelope::decode(&forged), Err(DecodeError));
    }
}
