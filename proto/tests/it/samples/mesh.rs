//! The service `mesh`.

use std::time::Duration;

use meshwork_identity::{
    Contact, Limits, Revocation, RevocationNotice, Revoked, Scope, Scopes, Timestamp,
};
use meshwork_proto::SignedPskRotation;
use meshwork_proto::announcement::Role;
use meshwork_proto::facts::Fact;
use meshwork_proto::membership::Message;
use meshwork_proto::mesh::{self, *};
use meshwork_proto::path::NatClass;
use meshwork_proto::query::ScopeFilter;
use meshwork_proto::service::Method;

use super::facts::rotation;
use super::{Sample, addresses, method, sample, signed, texts};
use crate::fixture::{Mesh, NOW, identity};

pub(super) fn mesh_service() -> Vec<Sample> {
    let mesh = Mesh::new();
    let token = mesh.token(
        identity(1).node_id(),
        Scope::Announce,
        Duration::from_hours(1),
    );
    let what = Revoked::Node(identity(2).node_id());
    let notice = RevocationNotice {
        what,
        issued_at: NOW,
        keep_until: Timestamp::MAX,
    };
    let revocation = Revocation::by_authority(&mesh.authority, &notice).unwrap();
    let contact = Contact {
        node: identity(1).node_id(),
        addrs: addresses(),
    };
    let peer = PeerView {
        node: identity(1).node_id(),
        path: "direct".into(),
        address: addresses()[0],
        rtt: Duration::from_micros(250),
        lost: 1,
        sent: 1000,
        bytes_sent: 1_000_000,
        bytes_received: 2_000_000,
        age: Duration::from_mins(1),
        neighbour: true,
    };
    let drops = RelayDrops {
        not_serving: 1,
        not_member: 2,
        unknown_peer: 3,
        over_rate: 4,
        over_total: 5,
        congested: 6,
        malformed: 7,
    };
    let traversal = TraversalStats {
        punches_attempted: 4,
        punches_succeeded: 3,
        relay_fallbacks: 1,
        rotations: 2,
        relayed_bytes: 1 << 30,
        relay_dropped: drops.total(),
        relay_drops: drops,
    };
    let membership = MembershipCounters {
        probes: 100,
        failed: 10,
        raised: 9,
        refuted: 8,
        deaths: 1,
        floods: 1000,
        duplicates: 2000,
        repairs: 3,
    };
    let offer = PathOffer {
        candidates: addresses(),
        nat: NatClass::Cone,
        id: 1 << 40,
    };
    let seen = NeighbourView {
        node: identity(1).node_id(),
        neighbours: vec![peer.clone()],
        known: 2,
        suspects: vec![identity(3).node_id()],
    };
    let status = MeshStatus {
        node: identity(1).node_id(),
        authority: mesh.root,
        version: "0.1.0".into(),
        roles: Role::ALL.into(),
        listening: addresses(),
        uptime: Duration::from_secs(5),
        peers: vec![peer],
        known: 2,
        strangers: 3,
        failed_handshakes: 4,
        refused_announcements: 5,
        nat: NatClass::Cone,
        reflex: Some(addresses()[0]),
        mapped: Some(addresses()[0]),
        mapping: "upnp".into(),
        relays: vec![identity(2).node_id()],
        traversal,
        health: 1,
        suspects: vec![identity(3).node_id()],
        dead: 1,
        membership,
    };
    let present = Present {
        tokens: vec![token.clone()],
        version: "0.1.0".into(),
        addresses: addresses(),
        accepts: true,
    };
    let presented = Presented {
        refused: vec![None, Some(("expired".into(), "the token expired".into()))],
        tokens: vec![token.clone()],
    };
    let joined = Joined {
        token,
        role: "agent".into(),
        contacts: vec![contact],
        revocations: vec![revocation.clone()],
    };
    let invite = Invite {
        role: "agent".into(),
        ttl: Duration::from_hours(1),
        uses: 2,
        token_ttl: Duration::from_hours(24),
        scopes: Some(Scopes::from([Scope::Join, Scope::Announce])),
        limits: Limits {
            gpus: Some(2),
            ..Limits::none()
        },
        addresses: addresses(),
    };
    let find = Find {
        query: "gpu.vram >= 40GB".into(),
        limit: 100,
        tenants: texts(&["acme"]),
        region: Some("eu".into()),
    };
    let join = Join {
        id: [1; 16],
        secret: [2; 16],
        name: "lab-1".into(),
    };
    let invited = Invited {
        ticket: "mw1abc".into(),
        expires: NOW,
        fingerprint: "a-b-c".into(),
    };
    [
        method::<mesh::Ping>(
            &(),
            &[Pong {
                now: NOW,
                version: "0.1.0".into(),
            }],
        ),
        method::<mesh::PresentTokens>(&present, &[presented]),
        method::<mesh::JoinMesh>(&join, &[joined]),
        method::<mesh::Gossip>(
            &GossipBatch {
                messages: vec![Message::Neighbor { urgent: true }],
                facts: vec![Fact::Announcement(signed())],
            },
            &[()],
        ),
        method::<mesh::RotatePsk>(
            &SignedPskRotation::by_authority(&mesh.authority, &rotation()).unwrap(),
            &[()],
        ),
        method::<mesh::RevokeTokens>(
            &Revoke {
                items: vec![revocation],
            },
            &[()],
        ),
        method::<mesh::Reflex>(
            &(),
            &[Reflexed {
                address: addresses()[0],
            }],
        ),
        method::<mesh::OfferPaths>(&offer, std::slice::from_ref(&offer)),
        method::<mesh::Survey>(&(), &[seen]),
        method::<mesh::ListMethods>(&(), &[vec![<mesh::ListMethods as Method>::INFO.view()]]),
        method::<mesh::FindNodes>(
            &find,
            &[Found {
                nodes: vec![signed()],
                total: 7,
            }],
        ),
        method::<mesh::FindScopedNodes>(
            &FindScoped {
                find,
                scope: ScopeFilter::Regions(texts(&["eu", "us"])),
            },
            &[Found {
                nodes: vec![],
                total: 0,
            }],
        ),
        method::<mesh::Inspect>(&(), &[status]),
        method::<mesh::MakeTicket>(&invite, &[invited]),
    ]
    .into_iter()
    .flatten()
    .chain([scopes()])
    .collect()
}

fn scopes() -> Sample {
    let every = vec![
        ScopeFilter::Everything,
        ScopeFilter::Any,
        ScopeFilter::GlobalOnly,
        ScopeFilter::Own,
        ScopeFilter::SameSubnet,
        ScopeFilter::Tenants(texts(&["acme"])),
        ScopeFilter::Regions(texts(&["eu"])),
    ];
    sample("mesh", "ScopeFilter", &every)
}
