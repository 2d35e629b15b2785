//! Warrants: the order, the signer and the token belong together.

use meshwork_identity::{
    EnvelopeError, Identity, Revocations, Token, VerifyContext, Warrant, WarrantError,
};

use crate::common::{NOW, chain, id, person, request, root_token};

type Order = (u64, String);

fn order() -> Order {
    (7, "create kernel".to_owned())
}

fn sealed(user: &Identity, token: Token) -> Warrant {
    Warrant::seal(user, token, &order()).unwrap()
}

fn kind(warrant: &Warrant) -> &'static str {
    let (root, nothing) = (id(0), Revocations::new());
    match warrant.verify(&VerifyContext::new(&root, NOW, &nothing)) {
        Ok(_) => "ok",
        Err(WarrantError::Token(e)) => e.kind(),
        Err(WarrantError::Order(_)) => "order",
        Err(WarrantError::OtherToken) => "other_token",
    }
}

#[test]
fn a_good_warrant_tells_signer_grant_and_order() {
    let warrant = sealed(&person(3), chain());
    let (root, nothing) = (id(0), Revocations::new());
    let (grant, signer) = warrant
        .verify(&VerifyContext::new(&root, NOW, &nothing))
        .unwrap();
    assert_eq!((signer, grant.subject), (id(3), id(3)));
    assert_eq!(warrant.open::<Order>(), Ok(order()));
    let carried = postcard::to_allocvec(&warrant).unwrap();
    assert_eq!(postcard::from_bytes(&carried), Ok(warrant));
}

#[test]
fn a_manager_cannot_sign_for_a_user() {
    let warrant = sealed(&person(2), chain());
    assert_eq!(kind(&warrant), "wrong_subject");
}

#[test]
fn a_manager_cannot_put_an_order_under_another_token() {
    let mut warrant = sealed(&person(1), root_token());
    // As wide, and the user's own as well: still not what was signed.
    warrant.token = Token::issue_root(&person(0), request(id(1)), NOW, [9; 16]).unwrap();
    assert_eq!(kind(&warrant), "other_token");
    assert_eq!(warrant.open::<Order>(), Err(WarrantError::OtherToken));
}

#[test]
fn a_manager_cannot_change_an_order() {
    let warrant = sealed(&person(3), chain());
    let bytes = warrant.order.encode();
    let mut changed = 0;
    for position in 32..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[position] ^= 1;
        if let Ok(order) = meshwork_identity::Envelope::decode(&bytes) {
            let warrant = Warrant {
                order,
                ..warrant.clone()
            };
            assert_eq!(kind(&warrant), "order");
            assert!(warrant.open::<Order>().is_err());
            changed += 1;
        }
    }
    assert!(
        changed > 64,
        "most changes decode and only the signature finds them"
    );
}

#[test]
fn an_order_of_another_type_does_not_open() {
    let warrant = sealed(&person(3), chain());
    assert!(matches!(
        warrant.open::<[u8; 2]>(),
        Err(WarrantError::Order(EnvelopeError::Decode(_)))
    ));
}
