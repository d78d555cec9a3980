use super::*;

fn render(source: &str, messages: &[Message]) -> Result<String, ModelError> {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(messages, true)
}

fn conversation() -> Vec<Message> {
    vec![
        Message::system("Be brief."),
        Message::user(" Hello "),
        Message::assistant("Hi."),
        Message::user("Why?"),
    ]
}

/// Constructs of Llama 3: slicing, `is defined`, `trim`, string addition, `bos_token`, dates, `tojson` never reached.
#[test]
fn a_template_in_the_style_of_llama_3() {
    let source = r#"{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set first = "" %}
{%- endif %}
{{- "[head]system[/head]\n\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- first + "[end]" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[head]' + message['role'] + '[/head]\n\n' + message['content'] | trim + '[end]' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[head]assistant[/head]\n\n' }}
{%- endif %}
"#;
    assert_eq!(
        render(source, &conversation()).unwrap(),
        "<s>[head]system[/head]\n\nBe brief.[end][head]user[/head]\n\nHello[end][head]assistant[/head]\n\nHi.[end]\
         [head]user[/head]\n\nWhy?[end][head]assistant[/head]\n\n"
    );
}

/// Constructs of Mistral: alternation check with `loop.index0` and a namespace, exceptions, string methods.
#[test]
fn a_template_in_the_style_of_mistral() {
    let source = r#"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate: user, assistant, user, ...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[ask]" + system_message + "\n\n" + message["content"].strip() + "[/ask]" }}
        {%- else %}
            {{- "[ask]" + message["content"].strip().upper() + "[/ask]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"#;
    assert_eq!(
        render(source, &conversation()).unwrap(),
        "<s>[ask]HELLO[/ask] Hi.</s>[ask]Be brief.\n\nWhy?[/ask]"
    );
    let error = render(source, &[Message::user("a"), Message::user("b")]).unwrap_err().to_string();
    assert!(error.contains("roles must alternate"), "{error}");
}

/// Constructs of Qwen2.5: `loop.first`, nested conditions, string concatenation with `~`, a default system message.
#[test]
fn a_template_in_the_style_of_qwen_2_5() {
    let source = r#"{%- if tools %}
    {{- '<|tools|>' }}
{%- else %}
    {%- if messages[0].role != 'system' %}
        {{- '<|start|>system\nYou help.<|end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|start|>' + message.role + '\n' + message.content + '<|end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|start|>' ~ message.role }}
        {%- for call in message.tool_calls %}{{ call }}{%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' }}
{%- endif %}
"#;
    let got = render(source, &[Message::user("Hello")]).unwrap();
    assert_eq!(got, "<|start|>system\nYou help.<|end|>\n<|start|>user\nHello<|end|>\n<|start|>assistant\n");
    assert!(
        render(source, &conversation())
            .unwrap()
            .starts_with("<|start|>system\nBe brief.<|end|>\n<|start|>user")
    );
}

/// Constructs of InternLM2 (one line, string literals with escapes) and of reasoning models (`split`, reversed loops).
#[test]
fn templates_in_the_style_of_internlm_2_and_qwen_3() {
    let source = "{{ bos_token }}{% for message in messages %}{{'<|im|>' + message['role'] + '\n' + message['content'] + \
                  '<|/im|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im|>assistant\n' }}{% endif %}";
    assert_eq!(render(source, &[Message::user("a")]).unwrap(), "<s><|im|>user\na<|/im|>\n<|im|>assistant\n");
    let source = r#"{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and not message.content.startswith('<tool>') %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{{- ns.last }}
{%- set content = messages[0].content %}
{%- if '</think>' in content %}
    {{- '|' + content.split('</think>')[-1].lstrip('\n') }}
    {{- '|' + content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}
{%- endif %}"#;
    let messages =
        [Message::assistant("<think>\nhm\n</think>\n\nyes"), Message::user("a"), Message::assistant("b")];
    assert_eq!(render(source, &messages).unwrap(), "1|yes|hm");
}

#[test]
fn dates_come_from_the_clock() {
    let year: u32 = render("{{ strftime_now('%Y') }}", &[]).unwrap().parse().unwrap();
    assert!(year >= 2024);
    assert_eq!(render("{{ strftime_now is defined }}", &[]).unwrap(), "True");
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let find = |config: &str, jinja| ChatTemplate::from_texts(Some(config), jinja).unwrap();
    let text = |t: Option<ChatTemplate>| t.unwrap().render(&[], false).unwrap();
    assert!(find("{}", None).is_none());
    assert!(ChatTemplate::from_texts(None, None).unwrap().is_none());
    assert_eq!(
        text(find(r#"{"chat_template": "a{{ bos_token }}", "bos_token": {"content": "B"}}"#, None)),
        "aB"
    );
    let list =
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(text(find(list, None)), "d");
    assert_eq!(text(find(list, Some("file"))), "file");
    assert!(ChatTemplate::from_texts(Some("{"), None).is_err());
}

#[test]
fn bad_templates_are_errors() {
    assert!(render("{% for %}", &[]).unwrap_err().to_string().contains("line 1"));
    assert!(render("{{ messages[0].content.nothing() }}", &conversation()).is_err());
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    assert!(render(endless, &[]).unwrap_err().to_string().contains("fuel"));
}

#[test]
fn chains_of_operators_do_not_exhaust_the_stack() {
    for (piece, n) in [("-", 60_000), ("1+", 30_000), ("not ", 15_000), ("a.b", 20_000), ("((", 30_000)] {
        // Valid or not, it comes to an end.
        let _ = ChatTemplate::new(&format!("{{{{ {}1 }}}}", piece.repeat(n)), None, None);
    }
    let long = ChatTemplate::new(&"x".repeat(100_000), None, None).unwrap_err();
    assert!(long.to_string().contains("100000 bytes"), "{long}");
}

/// As transformers renders it: the tags that mark what the model says leave no trace.
#[test]
fn generation_tags_render_what_stands_within() {
    let source = "{% for m in messages %}\n{{- '[' + m.role + '] ' }}\n{%- if m.role == 'assistant' %}\n    \
                  {%- generation -%}\n    {{ m.content + '</s>' }}\n    {%- endgeneration -%}\n{%- else %}\n{{- m.content }}\n\
                  {%- endif %}\n{%- endfor %}{# {% generation %} #}{{ '{% generation %}' }}";
    let messages = [Message::user("a"), Message::assistant("b")];
    assert_eq!(render(source, &messages).unwrap(), "[user] a[assistant] b</s>{% generation %}");
    let plain = "{% generation %}\nx{% endgeneration %}\n{% raw %}{% generation %}{% endraw %}";
    assert_eq!(render(plain, &[]).unwrap(), "x{% generation %}");
}

#[test]
fn line_ends_of_other_systems_are_line_breaks() {
    let source = "{% for m in messages %}\r\n<{{ m.content }}>\r\n{% endfor %}\r\nend\rlast";
    assert_eq!(render(source, &[Message::user("a"), Message::user("b")]).unwrap(), "<a>\n<b>\nend\nlast");
}

#[test]
fn thinking_is_a_switch_of_the_template() {
    let source = "{{ '[assistant] ' }}{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}\
                  {% endif %}";
    let say = |thinking| {
        let template = ChatTemplate::new(source, None, None).unwrap().with_thinking(thinking);
        assert!(template.can_think());
        template.render(&[Message::user("a")], true).unwrap()
    };
    assert_eq!(say(None), "[assistant] ");
    assert_eq!(say(Some(true)), "[assistant] ");
    assert_eq!(say(Some(false)), "[assistant] <think>\n\n</think>\n\n");
    assert!(!ChatTemplate::new("{{ messages[0].content }}", None, None).unwrap().can_think());
}

/// transformers passes `tools` and `documents` as none, so that they are defined.
#[test]
fn templates_for_tools_see_that_there_are_none() {
    let source = "{% if tools is not none %}tools{% endif %}{% if not documents %}plain{% endif %}";
    assert_eq!(render(source, &[]).unwrap(), "plain");
}

#[test]
fn directives_of_time_are_never_refused() {
    assert_eq!(render("[{{ strftime_now('%z') }}{{ strftime_now('%Q') }}]", &[]).unwrap(), "[%Q]");
}
