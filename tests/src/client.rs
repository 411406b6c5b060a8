//! A client as users would write one, and short ways to build requests.

use std::net::SocketAddr;

use rookery_proto::v1::{
    self, GenerateRequest, generate_request::Input, generate_response::Event,
    inference_service_client::InferenceServiceClient,
};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// A client of the inference service.
pub type Client = InferenceServiceClient<Channel>;

/// A channel to a server in this process; it connects with the first call.
///
/// # Panics
/// Never: an address makes a valid URI.
pub fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an address makes a valid URI").connect_lazy()
}

/// A client on a connection of its own that takes very little of an answer before it is read.
///
/// # Panics
/// Never: an address makes a valid URI.
pub fn narrow_client(address: SocketAddr) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a valid URI");
    Client::new(endpoint.initial_stream_window_size(64).connect_lazy())
}

/// A client of the server at `address`.
pub fn client(address: SocketAddr) -> Client {
    Client::new(channel(address))
}

/// A request to continue `text` for `max_tokens` tokens, whatever the model says about the end.
pub fn text(text: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: crate::bundles::MODEL.to_owned(),
        input: Some(Input::Text(text.to_owned())),
        sampling: Some(v1::SamplingParams { max_tokens: Some(max_tokens), ..Default::default() }),
        stop: Some(v1::StopParams { ignore_eos: true, ..Default::default() }),
        ..Default::default()
    }
}

/// The same for token ids.
pub fn ids(ids: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest { input: Some(Input::TokenIds(v1::TokenIds { ids })), ..text("", max_tokens) }
}

/// Everything that one generation sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The first event.
    pub started: Option<v1::Started>,
    /// The text of all deltas.
    pub text: String,
    /// The ids of all deltas.
    pub token_ids: Vec<u32>,
    /// The log-probabilities of all deltas.
    pub logprobs: Vec<v1::TokenLogprobs>,
    /// The last event.
    pub finished: Option<v1::Finished>,
}

impl Answer {
    /// Adds an event, which must come in the order that the contract promises.
    ///
    /// # Panics
    /// When it does not.
    pub fn add(&mut self, response: v1::GenerateResponse) {
        assert!(self.finished.is_none(), "an event after Finished");
        match response.event.expect("an empty event") {
            Event::Started(started) => {
                assert!(
                    self.started.is_none() && self.token_ids.is_empty(),
                    "Started is not the first event"
                );
                self.started = Some(started);
            }
            Event::Delta(delta) => {
                assert!(self.started.is_some(), "a Delta before Started");
                self.text.push_str(&delta.text);
                self.token_ids.extend(delta.token_ids);
                self.logprobs.extend(delta.logprobs);
            }
            Event::Finished(finished) => self.finished = Some(finished),
        }
    }

    /// Name of the gateway that answered.
    ///
    /// # Panics
    /// When there is no first event.
    pub fn gateway(&self) -> &str {
        &self.started.as_ref().expect("no Started").gateway
    }
}

/// Runs a generation to its end.
///
/// # Errors
/// The status that the call or its stream ended with.
pub async fn generate(client: &Client, request: GenerateRequest) -> Result<Answer, Status> {
    let stream = client.clone().generate(request).await?.into_inner();
    collect(stream).await.1
}

/// Reads a stream to its end; also what came before an error.
pub async fn collect(mut stream: Streaming<v1::GenerateResponse>) -> (Answer, Result<Answer, Status>) {
    let mut answer = Answer::default();
    loop {
        match stream.message().await {
            Ok(Some(response)) => answer.add(response),
            Ok(None) => {
                assert!(answer.finished.is_some(), "the stream ended without Finished or an error");
                return (answer.clone(), Ok(answer));
            }
            Err(status) => return (answer, Err(status)),
        }
    }
}
