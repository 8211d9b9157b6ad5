//! Tests of the HTTP server on the loopback address, over the real engine and a fake executor. The client
//! shows every byte of a response.
//!
//! Rules that clients rely on, and the tests of each:
//!
//! | rule | tests |
//! |---|---|
//! | Events are `data: {json}` and an empty line, then `data: [DONE]`; characters are whole | |
//! | | `a_chat_stream_is_role_content_finish_done` |
//! | | `characters_are_never_split_over_events` |
//! | | `a_silent_stream_sends_comments_and_loses_no_chunk` |
//! | A failure within a stream is an `error` event, then the end without a finish reason | |
//! | | `a_failed_stream_ends_with_an_error_event_and_without_done` |
//! | Chunks share id, time and model; the role comes once, with the first token; the finish alone | |
//! | | `a_chat_stream_is_role_content_finish_done` |
//! | | `headers_precede_the_first_token_and_the_role_comes_with_it` |
//! | Deltas can be concatenated: no key but the index repeats | |
//! | | `choices_interleave_each_with_one_role_and_one_finish` |
//! | Usage only on request: in the last chunk, with empty choices, and null before | |
//! | | `usage_comes_last_without_choices_and_is_null_before` |
//! | `finish_reason` is `stop`, `length` or `tool_calls`, the last with calls only | |
//! | | `max_tokens_ends_an_answer_under_both_of_its_names` |
//! | | `calls_of_an_answer_are_in_the_message_and_in_deltas` |
//! | | `unsupported_fields_are_refused_by_name` |
//! | Chat logprobs: `content` and `refusal`, true bytes, `bytes:` form, no infinity | |
//! | | `logprobs_have_true_bytes_and_a_form_for_half_characters` |
//! | | `logprobs_come_with_their_text` |
//! | | `a_score_of_minus_infinity_is_a_number_on_the_wire` |
//! | Completion logprobs: four columns, the first null with echo | |
//! | | `prompt_logprobs_have_the_layout_that_evaluation_harnesses_expect` |
//! | | `text_offsets_count_characters` |
//! | | `the_text_at_each_offset_begins_with_the_token` |
//! | | `ids_with_the_same_text_have_entries_of_their_own` |
//! | Choices: an index in each chunk, one finish reason each, one usage, one queue place each | |
//! | | `choices_interleave_each_with_one_role_and_one_finish` |
//! | | `every_choice_has_its_index_and_the_prompt_counts_once` |
//! | | `a_permit_counts_its_requests_until_the_scheduler_does` |
//! | Errors have four keys and a code of text; OpenAI's text if the context is exceeded | |
//! | | `a_request_over_the_context_length_is_refused_in_openais_words` |
//! | | `invalid_json_is_a_400_with_a_short_text` |
//! | Only HTTP/1.1 | `http_2_is_refused_and_changes_no_other_stream` |
//! | 401, 404, 405, 408, 413, 415, 431 | `only_the_exact_key_is_accepted` |
//! | | `models_are_listed_under_every_name` |
//! | | `unknown_paths_and_methods_get_an_error_object` |
//! | | `slow_heads_slow_bodies_and_idle_connections_time_out` |
//! | | `oversized_bodies_and_heads_are_refused` |
//! | | `content_types_and_encodings` |
//! | Without a key, 403 for a foreign host or origin; 400 for a missing or double host | |
//! | | `without_a_key_the_host_is_an_address_localhost_or_an_allowed_name` |
//! | | `without_a_key_a_foreign_origin_is_refused_whatever_the_content_type` |
//! | | `a_host_header_that_rfc_9112_forbids_is_a_400` |
//! | Web pages of allowed origins: preflight without a key, headers on every response | |
//! | | `a_preflight_request_needs_no_key_on_any_route` |
//! | | `errors_and_streams_can_be_read_by_pages_of_allowed_origins` |
//! | A predicted wait that is too long is a 429 with Retry-After | |
//! | | `a_predicted_wait_over_max_ttft_is_a_429_with_retry_after` |
//! | | `a_full_queue_predicts_retry_after` |
//! | | `an_unmeetable_deadline_is_refused_at_once` |
//! | An expired deadline is a 504 or an `error` event, and frees the KV blocks | |
//! | | `an_expired_deadline_ends_only_its_own_request` |
//! | | `a_deadline_expires_in_the_queue` |
//! | 429 with Retry-After, before the headers of a stream and before tokenization | |
//! | | `a_full_queue_is_a_429_even_for_a_stream` |
//! | | `the_status_of_a_full_queue_is_configurable` |
//! | 500 with `x-should-retry: false`, without it if the engine failed; 503 if not started | |
//! | | `a_failed_request_is_a_500_with_x_should_retry_false` |
//! | | `a_request_lost_to_an_engine_failure_is_a_retryable_500` |
//! | | `a_server_that_loads_its_model_is_live_and_not_ready` |
//! | | `the_admin_port_drains_and_a_signal_ends_the_server` |
//! | | `shutdown_drops_readiness_then_refuses_requests_then_completes_streams` |
//! | Responses: every event in its order with its number, no `[DONE]`, a failure as `response.failed` | |
//! | | `a_stream_has_every_event_in_order_with_its_number` |
//! | | `a_failure_after_the_headers_is_response_failed` |
//! | Messages: every event in its order, errors in Anthropic's form | `a_stream_has_every_event_in_order` |
//! | | `errors_have_the_form_of_the_api_wherever_they_arise` |
//! | | `a_failure_after_the_headers_is_an_error_event` |
//! | Probes answer at any load and give a reason | `health_follows_from_the_status_snapshot` |
//! | | `every_alias_answers_on_every_port` |
//! | | `the_health_port_reports_a_stall_while_all_workers_are_blocked` |
//! | | `ten_thousand_queued_requests_delay_no_probe` |
//! | A disconnect frees the KV blocks within a step, streaming or not | |
//! | | `a_disconnect_frees_the_kv_blocks_streaming_or_not` |
//! | | `a_disconnect_with_unread_bytes_frees_the_kv_blocks` |
//! | A client that reads too slowly is disconnected | |
//! | | `a_client_that_never_reads_is_disconnected_and_delays_no_request` |
//! | | `a_client_that_reads_too_slowly_is_disconnected` |
//! | A field that constrains the answer is never ignored | |
//! | | `a_constraint_is_refused_by_name_in_every_spelling` |
//! | | `constraints_in_messages_are_refused_with_their_path` |
//! | | `fields_that_clients_send_back_in_messages_are_accepted` |
//! | Unknown fields are named in a header, or refused | `unknown_fields_are_named_in_a_header` |
//! | | `unknown_fields_of_messages_and_parts_are_named_too` |
//! | | `unknown_fields_are_refused_by_name_if_the_operator_chose_so` |
//! | The log has a line for each request, with its cost however it ends | |
//! | | `the_log_has_one_line_for_each_request` |
//! | | `the_log_has_the_cost_of_every_request_however_it_ends` |
//! | Slow bodies and silent connections delay no other request | |
//! | | `an_unfinished_body_takes_no_place_in_the_queue` |
//! | | `silent_connections_do_not_block_probes` |
//! | | `silent_connections_do_not_block_the_health_port` |
//! | | `an_unfinished_body_gets_a_503_and_delays_no_shutdown` |
//! | Scores are in the forms that their clients read; a model answers the routes of its kind alone | |
//! | | `a_chat_has_the_form_of_nvidias_hosted_api` |
//! | | `classify_ends_with_the_score_and_get_reward_has_columns` |
//! | | `each_kind_of_model_refuses_the_routes_of_the_other` |
//! | Text of another model's template is read into turns, or refused | |
//! | | `text_of_every_known_template_scores_as_its_messages` |
//! | | `text_that_is_no_conversation_is_refused_by_name` |
//! | Every response has an `x-request-id` | `a_valid_request_id_of_the_client_is_kept` |

mod abort;
mod access;
mod admission;
mod batch_crashes;
mod batch_lines;
mod batch_room;
mod batches;
mod beside_model;
mod chat;
pub mod client;
mod completions;
mod context;
mod drain;
mod failures;
mod grammars;
mod health;
mod keys;
mod limits;
mod log;
mod messages;
mod metrics;
mod middleware;
mod offsets;
mod openapi;
mod openapi_streams;
mod page;
mod responses;
mod reward_forms;
mod reward_texts;
pub mod rewards;
mod routes;
mod scripted;
mod speculation;
mod streams;
pub mod test_server;
mod token_fields;
mod tool_templates;
mod tools;
