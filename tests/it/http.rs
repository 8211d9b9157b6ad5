//! The server on loopback, over the real engine and a fake executor, spoken to by a client that shows every byte.
//!
//! What clients rely on, and the tests that hold us to it:
//!
//! | rule | tests |
//! |---|---|
//! | `data: {json}`, an empty line, `data: [DONE]` at the end; whole characters only | `a_chat_is_role_text_finish_done`, `characters_are_never_split_over_events`, `a_silent_stream_gets_comments_and_loses_nothing` |
//! | a failure within a stream is an `error` event, then the end without a finish | `a_stream_that_fails_ends_with_an_error_and_without_an_end` |
//! | chunks of an answer share id, time and model; role first, once, with the first token; finish on its own | `a_chat_is_role_text_finish_done`, `headers_come_before_the_first_token_and_the_role_does_not` |
//! | deltas add up: no key but an index repeats | `choices_interleave_each_with_one_role_and_one_finish` |
//! | usage only on request, last, with empty choices, null before | `usage_comes_last_without_choices_and_is_null_before` |
//! | `finish_reason` is `stop` or `length`; tools are refused by name | `max_tokens_ends_an_answer_under_both_of_its_names`, `unsupported_fields_are_refused_by_name` |
//! | chat logprobs: `content` and `refusal`, true bytes, `bytes:` form, no infinity | `logprobs_have_true_bytes_and_a_form_for_half_characters`, `scores_come_with_the_text_they_belong_to`, `a_score_of_minus_infinity_is_a_number_on_the_wire` |
//! | completion logprobs: four columns, null first with echo | `prompt_logprobs_have_the_layout_that_evaluation_harnesses_expect`, `text_offsets_count_characters` |
//! | n choices: index in each chunk, one finish each, one usage; each takes a place in the queue | `choices_interleave_each_with_one_role_and_one_finish`, `every_choice_has_its_index_and_the_prompt_counts_once`, `a_place_counts_from_before_its_group_is_submitted_until_it_runs` |
//! | errors have four keys and a code of text; the context's length is told in the known words | `what_does_not_fit_is_refused_in_the_known_words`, `what_is_no_json_is_a_400_with_a_short_text` |
//! | HTTP/1.1 and no other | `http_2_is_refused_and_disturbs_nobody` |
//! | 401, 404, 405, 408, 413, 415, 431 | `only_the_key_is_the_key`, `models_are_listed_by_every_name`, `paths_and_methods_that_are_none_get_an_error_object`, `slow_heads_slow_bodies_and_idlers_are_cut_off`, `bodies_and_heads_have_a_size`, `types_and_encodings_of_bodies` |
//! | a wait that is predicted to be too long is a 429 that says when to come back | `a_wait_that_would_be_too_long_is_refused_with_the_time_to_come_back`, `a_full_queue_says_when_a_place_will_be_free`, `a_deadline_that_cannot_be_met_is_refused_at_once` |
//! | a deadline that passes is a 504, or an `error` event, and frees what the request held | `a_deadline_that_passes_ends_the_request_and_nobody_elses`, `a_deadline_passes_in_the_queue_too` |
//! | 429 with Retry-After, before a header of a stream and before tokenising | `a_full_queue_is_a_429_before_any_header_of_a_stream`, `a_full_queue_may_have_another_status` |
//! | 500 with x-should-retry: false, or without where the engine broke down; 503, with Retry-After while starting and draining, only for what was not begun | `a_request_that_fails_is_a_500_that_says_not_to_retry`, `a_request_whose_engine_fails_is_a_500_that_may_be_tried_again`, `before_the_model_is_loaded_the_server_is_alive_and_not_ready`, `the_admin_port_drains_and_the_supervisor_ends_it`, `readiness_goes_first_then_new_requests_then_the_last_stream_ends_well` |
//! | probes answer at any load, from atomics, and say what is wrong | `what_a_reading_means`, `every_alias_answers_on_every_port`, `a_stuck_engine_is_seen_while_every_worker_is_stuck_too`, `ten_thousand_in_the_queue_delay_no_probe` |
//! | a client that leaves frees its blocks within a step, streaming or not | `leaving_frees_the_blocks_streaming_or_not`, `a_client_that_left_bytes_behind_has_left_all_the_same` |
//! | a client that reads too slowly is cut off | `a_client_that_never_reads_is_cut_off_and_holds_nobody_up`, `a_client_that_drips_is_cut_off_like_one_that_never_reads` |
//! | unknown fields are named in a header, or refused | `unknown_fields_are_named_in_a_header`, `unknown_fields_of_messages_and_parts_are_named_too`, `unknown_fields_are_refused_by_name_if_the_operator_chose_so` |
//! | the log has a line for each request, with its cost whatever ended it | `the_log_has_one_line_for_each_request`, `whatever_ends_a_request_the_log_says_what_it_has_cost` |
//! | what does not come, or says nothing, holds nobody up | `a_body_that_does_not_come_takes_nobodys_place`, `probes_wait_for_nobody_who_says_nothing`, `nobody_keeps_probes_out_by_saying_nothing`, `a_body_on_its_way_holds_nothing_up_and_is_told_why` |
//! | every response has an `x-request-id` | `a_valid_request_id_of_the_client_is_kept` |

mod abort;
mod admission;
mod chat;
pub mod client;
mod completions;
mod context;
mod door;
mod drain;
mod failures;
mod health;
pub mod house;
mod keys;
mod limits;
mod log;
mod metrics;
mod routes;
mod streams;
