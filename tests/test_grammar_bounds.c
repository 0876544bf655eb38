/* What a schema may cost: schemas that would take seconds or gigabytes are refused by the count of
 * work, which is the same on every machine; ordinary large ones are not. Schemas are written with '
 * for ". */
#include <string.h>

#include "host/buffer.h"
#include "host/grammar_internal.h"
#include "tests/grammar_fixture.h"
#include "tests/shim.h"

/* before[0], items[0] count[0] times with commas, before[1], items[1] ..., and the end. An @ in an
 * item is its number. */
struct made_schema {
    const char *before[2], *items[2];
    int count[2];
    const char *end;
    const char *says; /* the refusal; "": it compiles */
};

static void append_items(struct buffer *out, const char *item, int count) {
    for (int i = 0; i < count; i++) {
        if (i)
            buffer_putc(out, ',');
        for (const char *p = item; *p; p++)
            if (*p == '@')
                buffer_printf(out, "%d", i);
            else
                buffer_putc(out, *p);
    }
}

static void make_schema(struct buffer *out, const struct made_schema *m) {
    for (int part = 0; part < 2 && m->before[part]; part++) {
        buffer_puts(out, m->before[part]);
        append_items(out, m->items[part], m->count[part]);
    }
    buffer_puts(out, m->end);
    buffer_putc(out, 0);
}

static void check_made(const struct made_schema *cases, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const struct made_schema *m = &cases[i];
        struct buffer schema = {0};
        make_schema(&schema, m);
        const char *text = grammar_refusal(schema.data);
        if (*m->says ? !strstr(text, m->says) : *text != 0)
            FAIL("case %d: \"%s\" does not say \"%s\"", (int)i, text, m->says);
        buffer_deinit(&schema);
    }
}

#define CHECK_MADE(...)                                                                            \
    do {                                                                                           \
        static const struct made_schema cases[] = {__VA_ARGS__};                                   \
        check_made(cases, sizeof cases / sizeof *cases);                                           \
    } while (0)

/* Each level merges the one before with itself. */
static void doubled(struct buffer *out, int levels, int names, const char *name) {
    buffer_puts(out, "{'type':'object','$defs':{'d0':{'required':[");
    append_items(out, name, names);
    buffer_puts(out, "]}");
    for (int i = 1; i <= levels; i++)
        buffer_printf(out, ",'d%d':{'allOf':[{'$ref':'#/$defs/d%d'},{'$ref':'#/$defs/d%d'}]}", i,
                      i - 1, i - 1);
    buffer_printf(out, "},'$ref':'#/$defs/d%d'}", levels);
    buffer_putc(out, 0);
}

TEST(GrammarBounds, RequiredNamesAreUnitedAndCounted) {
    struct buffer few = {0}, many = {0};
    doubled(&few, 8, 100, "'a@'");
    EXPECT_STR_EQ(grammar_refusal(few.data), "");
    doubled(&many, 14, 1500, "'a'");
    EXPECT_TRUE(strstr(grammar_refusal(many.data), "too much work"));
    buffer_deinit(&few);
    buffer_deinit(&many);
    CHECK_MADE({{"{'$defs':{'a':{'required':[", "]}},'allOf':["},
                {"'a'", "{'$ref':'#/$defs/a'}"},
                {100000, 60},
                "]}",
                "too much work"});
}

TEST(GrammarBounds, WhatIsLookedAtAgainIsCountedAgain) {
    CHECK_MADE({{"{'$defs':{'e':{'enum':[", "]}},'prefixItems':["},
                {"1", "{'type':'integer','$ref':'#/$defs/e'}"},
                {20000, 50},
                "]}",
                "too much work"},
               {{"{'$defs':{'p':{'properties':{'x':{'anyOf':[true],", "}}}},'prefixItems':["},
                {"'k@':0", "{'allOf':[{'$ref':'#/$defs/p'}]}"},
                {20000, 50},
                "]}",
                "too much work"},
               {{"{'$defs':{'t':{'type':[", "]}},'prefixItems':["},
                {"'null'", "{'$ref':'#/$defs/t','minItems':1}"},
                {20000, 50},
                "]}",
                "too much work"},
               {{"{'$defs':{'a':{'const':[[", "]]}},'prefixItems':["},
                {"0", "{'$ref':'#/$defs/a','const':[[0,0]]}"},
                {2, 50},
                "]}",
                ""});
}

TEST(GrammarBounds, ValuesAreComparedAtTheirSize) {
    struct buffer schema = {0};
    buffer_puts(&schema, "{'$defs':{'a':{'const':[");
    append_items(&schema, "0", 50000);
    buffer_puts(&schema, "]},'b':{'const':[");
    append_items(&schema, "0", 50000);
    buffer_puts(&schema, "]}},'allOf':[");
    append_items(&schema, "{'$ref':'#/$defs/a'},{'$ref':'#/$defs/b'}", 100);
    buffer_puts(&schema, "]}");
    buffer_putc(&schema, 0);
    EXPECT_TRUE(strstr(grammar_refusal(schema.data), "too much work"));
    buffer_deinit(&schema);
}

TEST(GrammarBounds, NamesThatMustNotComeAreCounted) {
    CHECK_MADE(
        {{"{'properties':{", NULL},
         {"'x@a@b@c@d@e@f@g@h@i@j@k@l@m@n@o@p@q@r@s@t':false"},
         {1000},
         "},'additionalProperties':true}",
         "too much work"},
        {{"{'properties':{", NULL}, {"'x@':false"}, {800}, "},'additionalProperties':true}", ""});
}

TEST(GrammarBounds, TheAutomatonIsBounded) {
    CHECK_MADE(
        {{"{'anyOf':[", NULL}, {"{'minLength':@,'maxLength':4096}"}, {24}, "]}", "states"},
        {{"{'prefixItems':[", NULL}, {"{'minLength':@,'maxLength':4096}"}, {5}, "]}", ""},
        {{"{'anyOf':[", NULL},
         {"{'type':'object','properties':{'k@':{'const':'@'},'v':{'type':'string'}},"
          "'required':['k@','v']}"},
         {500},
         "]}",
         ""},
        {{"{'properties':{", "},'required':["},
         {"'property_@':{'type':['string','number','null'],'description':'d'}", "'property_@'"},
         {1000, 1000},
         "],'additionalProperties':false}",
         ""},
        {{"{'properties':{", "}}"}, {"'p@':{}", ""}, {1001, 0}, "", "at most 1000"},
        {{"{'enum':[", NULL}, {"'value_number_@'"}, {3000}, "]}", ""});
}

/* Thirty properties, each with the same hundred values of 20 characters written out, every other
 * list turned round: one list's states are within the bound, thirty are not. */
TEST(GrammarBounds, EqualListsOfValuesAreThereOnce) {
    struct grammar_pool *pool = byte_pool();
    struct buffer schema = {0};
    buffer_puts(&schema, "{'type':'object','properties':{");
    for (int p = 0; p < 30; p++) {
        buffer_printf(&schema, "%s'p%d':{'type':'string','enum':[", p ? "," : "", p);
        for (int i = 0; i < 100; i++)
            buffer_printf(&schema, "%s'%02d is a listed value'", i ? "," : "", p % 2 ? 99 - i : i);
        buffer_puts(&schema, "]}");
    }
    buffer_puts(&schema, "}}");
    buffer_putc(&schema, 0);
    struct grammar *g = grammar_from(schema.data);
    ASSERT_TRUE(g);
    static const char document[] =
        "{\"p0\":\"00 is a listed value\",\"p29\":\"99 is a listed value\"}";
    EXPECT_INT_LE(g->num_states, 4000);
    EXPECT_INT_EQ(grammar_take(pool, g, document, sizeof document - 1), -1);
    EXPECT_INT_GE(grammar_take(pool, g, "{\"p1\":\"00 is listed\"", 20), 0);
    grammar_release(g);
    grammar_pool_destroy(pool);
    buffer_deinit(&schema);
}

TEST(GrammarBounds, AllGrammarsTogetherAreBounded) {
    enum { MANY = 400 };
    struct grammar *held[MANY];
    struct error e = {0};
    int count = 0;
    json_t *schema = json_pack("{s:s,s:i}", "type", "string", "maxLength", 4096);
    json_t *large = json_pack("{s:[OOOOO]}", "prefixItems", schema, schema, schema, schema, schema);
    json_decref(schema);
    for (size_t i = 0; i < 5; i++) {
        schema = json_deep_copy(json_array_get(json_object_get(large, "prefixItems"), i));
        json_object_set_new(schema, "minLength", json_integer((json_int_t)i));
        json_array_set_new(json_object_get(large, "prefixItems"), i, schema);
    }
    while (count < MANY && grammar_create_json_schema(large, &held[count], &e) == 0)
        count++;
    EXPECT_INT_EQ(e.code, ERR_OVERLOADED);
    EXPECT_TRUE(strstr(e.text, "256 MiB already"));
    EXPECT_INT_GE(count, 130);
    while (count > 0)
        grammar_release(held[--count]);
    e = (struct error){0};
    EXPECT_INT_EQ(grammar_create_json_schema(large, &held[0], &e), 0);
    grammar_release(held[0]);
    json_decref(large);
}

/* Each of many ways on is there, the first and the last one. */
static void check_documents(const struct made_schema *m, const char *const *documents) {
    struct grammar_pool *pool = byte_pool();
    struct buffer schema = {0};
    make_schema(&schema, m);
    struct grammar *g = grammar_from(schema.data);
    for (; g && *documents; documents++)
        if (grammar_take(pool, g, *documents, strlen(*documents)) >= 0)
            FAIL("%s is refused by %.60s...", *documents, schema.data);
    grammar_release(g);
    grammar_pool_destroy(pool);
    buffer_deinit(&schema);
}

TEST(GrammarBounds, ManyWaysOnAreAllFollowed) {
    static const struct made_schema values = {
        {"{'anyOf':[{'type':'null'},", NULL}, {"{'const':'@item'}", NULL}, {2500, 0}, "]}", ""};
    static const struct made_schema titled = {
        {"{'oneOf':[", NULL}, {"{'const':'item@','title':'t@'}", NULL}, {600, 0}, "]}", ""};
    static const struct made_schema properties = {{"{'type':'object','properties':{", NULL},
                                                  {"'p@':{'type':'null'}", NULL},
                                                  {999, 0},
                                                  "}}",
                                                  ""};
    static const struct made_schema objects = {
        {"{'anyOf':[", NULL}, {"{'type':'object','required':['p@']}", NULL}, {700, 0}, "]}", ""};
    check_documents(&objects, (const char *const[]){"{\"p0\":1}", "{\"p699\":[],\"a\":{}}", NULL});
    check_documents(&values, (const char *const[]){"\"0item\"", "\"2499item\"", "null", NULL});
    check_documents(&titled, (const char *const[]){"\"item0\"", "\"item599\"", NULL});
    check_documents(&properties, (const char *const[]){"{}", "{\"p0\":null,\"p998\":null}",
                                                       "{\"p998\":null}", NULL});
}

/* A tag that is required is enough, wherever it stands: pairs of branches are not looked at. */
TEST(GrammarBounds, TaggedBranchesAreEachLookedAtOnce) {
    static const struct made_schema behind = {
        {"{'oneOf':[", "]}"},
        {"{'type':'object','properties':{'a':{'type':'string'},'b':{'type':'string'},"
         "'c':{'type':'string'},'d':{'type':'string'},'e':{'type':'string'},"
         "'kind':{'type':'string','const':'k@'}},"
         "'required':['a','b','c','d','e','kind'],'additionalProperties':false}",
         ""},
        {200, 0},
        "",
        ""};
    static const struct made_schema merged = {
        {"{'$defs':{'Base':{'type':'object','properties':{'id':{'type':'integer'},"
         "'kind':{'type':'string'}},'required':['id','kind']}},'oneOf':[",
         "]}"},
        {"{'allOf':[{'$ref':'#/$defs/Base'},{'properties':{'kind':{'const':'k@'}}}]}", ""},
        {100, 0},
        "",
        ""};
    static const struct made_schema titled = {
        {"{'oneOf':[", NULL}, {"{'const':'item@','title':'t@'}", NULL}, {2000, 0}, "]}", ""};
    check_documents(&behind, (const char *const[]){"{\"a\":\"\",\"b\":\"\",\"c\":\"\",\"d\":\"\","
                                                   "\"e\":\"\",\"kind\":\"k199\"}",
                                                   NULL});
    check_documents(&merged, (const char *const[]){"{\"id\":1,\"kind\":\"k0\"}",
                                                   "{\"id\":1,\"kind\":\"k99\"}", NULL});
    check_documents(&titled, (const char *const[]){"\"item0\"", "\"item1999\"", NULL});
}

TEST(GrammarBounds, TooManyWaysOnAreRefused) {
    CHECK_MADE({{"{'$defs':{'a':{'items':{}}},'anyOf':[", NULL},
                {"{'$ref':'#/$defs/a'}"},
                {9000},
                "]}",
                "more than 8192 branches"},
               {{"{'$defs':{'a':{'items':{}}},'items':{'anyOf':[", NULL},
                {"{'$ref':'#/$defs/a'}"},
                {9000},
                "]}}",
                "more than 8192 branches"});
}
