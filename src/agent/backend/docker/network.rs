//! The bridge network of all kernels. Docker lets several networks have one name, and two agents
//! that start at once on one daemon make two; the oldest is the one, and is meant by its id.

use std::collections::HashMap;

use bollard::models::{Network, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptionsBuilder;

use super::DockerBackend;
use crate::backend::BackendError;

/// Name of the network.
const NAME: &str = "meshwork";
/// Keeps kernels from talking to each other on it; Docker enforces it with iptables.
const ISOLATE: &str = "com.docker.network.bridge.enable_icc";

/// The id of the network, which is made when there is none.
pub(super) async fn ensure(backend: &DockerBackend) -> Result<String, BackendError> {
    if let Some(id) = oldest(&list(backend).await?) {
        return Ok(id);
    }
    let request = NetworkCreateRequest {
        name: NAME.into(),
        driver: Some("bridge".into()),
        options: Some(HashMap::from([(ISOLATE.into(), "false".into())])),
        ..NetworkCreateRequest::default()
    };
    let made = backend
        .ask("a network", backend.docker.create_network(request))
        .await?;
    let id = oldest(&list(backend).await?).unwrap_or_else(|| made.id.clone());
    if id != made.id {
        backend
            .ask("a removal", backend.docker.remove_network(&made.id))
            .await?;
    }
    Ok(id)
}

async fn list(backend: &DockerBackend) -> Result<Vec<Network>, BackendError> {
    let filters = HashMap::from([("name".to_owned(), vec![NAME.to_owned()])]);
    let options = ListNetworksOptionsBuilder::default()
        .filters(&filters)
        .build();
    backend
        .ask("its networks", backend.docker.list_networks(Some(options)))
        .await
}

/// Docker's filter also finds names that only contain ours.
fn oldest(networks: &[Network]) -> Option<String> {
    let ours = networks.iter().filter(|n| n.name.as_deref() == Some(NAME));
    ours.min_by_key(|n| (n.created.clone(), n.id.clone()))?
        .id
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_agents_mean_the_same_network() {
        let network = |name: &str, created: &str, id: &str| Network {
            name: Some(name.into()),
            created: Some(created.into()),
            id: Some(id.into()),
            ..Network::default()
        };
        let older = "2026-11-20T18:28:05.1Z";
        let newer = "2026-11-20T18:28:06.1Z";
        let mut networks = [
            network(NAME, newer, "a"),
            network("my-meshwork", "2020-01-01T00:00:00Z", "b"),
            network(NAME, older, "d"),
            network(NAME, older, "c"),
        ];
        assert_eq!(oldest(&networks).as_deref(), Some("c"));
        networks.reverse();
        assert_eq!(oldest(&networks).as_deref(), Some("c"));
        assert_eq!(oldest(&networks[2..3]), None);
    }
}
