/* Schemas: documents that their grammars take and documents that they do not, byte by byte, and
 * what is refused. Schemas and documents are written with ' for ". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/mem.h"
#include "tests/grammar_fixture.h"
#include "tests/shim.h"

enum { MAX_DOCUMENTS = 24 };

struct example {
    const char *schema;
    const char *takes[MAX_DOCUMENTS]; /* up to the first NULL */
    const char *refuses[MAX_DOCUMENTS];
};

static char *unquoted(const char *text) {
    char *copy = xstrdup(text);
    for (char *p = copy; *p; p++)
        if (*p == '\'')
            *p = '"';
    return copy;
}

static void check_examples(const struct example *examples, size_t count) {
    struct grammar_pool *pool = byte_pool();
    for (size_t i = 0; i < count; i++) {
        const struct example *e = &examples[i];
        struct grammar *g = grammar_from(e->schema);
        for (int k = 0; g && e->takes[k]; k++) {
            char *text = unquoted(e->takes[k]);
            int64_t n = grammar_take(pool, g, text, strlen(text));
            if (n >= 0)
                FAIL("%s refuses %s at byte %d", e->schema, text, (int)n);
            free(text);
        }
        for (int k = 0; g && e->refuses[k]; k++) {
            char *text = unquoted(e->refuses[k]);
            if (grammar_take(pool, g, text, strlen(text)) < 0)
                FAIL("%s takes %s", e->schema, text);
            free(text);
        }
        grammar_release(g);
    }
    grammar_pool_destroy(pool);
}

#define CHECK_EXAMPLES(...)                                                                        \
    do {                                                                                           \
        static const struct example examples[] = {__VA_ARGS__};                                    \
        check_examples(examples, sizeof examples / sizeof *examples);                              \
    } while (0)

TEST(Grammar, ScalarsAreOfTheirType) {
    CHECK_EXAMPLES({"{'type':'null'}", {"null"}, {"", "nul", "nulll", "0"}},
                   {"{'type':'boolean'}", {"true", "false"}, {"tru", "null", "'true'"}},
                   {"{'type':'integer'}",
                    {"0", "-0", "7", "-12", "123456789012345678"},
                    {"", "-", "01", "1.0", "1e3", "+1", "1234567890123456789", " 1"}},
                   {"{'type':'number'}",
                    {"0", "-1.5", "1e5", "1E-05", "0.25e+9", "12.12345678901234567"},
                    {".5", "1.", "1e", "1e123", "00", "-", "1.123456789012345678"}},
                   {"{'type':['string','null']}", {"null", "'a'", "''"}, {"a", "0"}},
                   {"{'type':['integer','number']}", {"1", "1.5"}, {"'1'"}});
}

TEST(Grammar, StringsAreJson) {
    CHECK_EXAMPLES(
        {"{'type':'string'}",
         {"''", "'a b'", "'\xc3\xa9'", "'\xe2\x82\xac'", "'\xf0\x9f\x98\x80'", "'\\n\\\\\\/\\b'",
          "'\\u0041'", "'\\ud83d\\ude00'", "'\\uD7FF\\uE000'", "'\\u0001'", "'\\u0800\\u00ff'",
          "'\xed\x9f\xbf'", "'\xf4\x8f\xbf\xbf'", "'\x7f'"},
         {"'", "'\n'", "'\\x'", "'\\u00'", "'\\u0000'", "'\\ud83d'", "'\\ude00'",
          "'\\ud83d\\u0041'", "'\xff'", "'\xc3'", "'\xc0\x80'", "'\xed\xa0\x80'",
          "'\xf4\x90\x80\x80'", "'\xe0\x80\x80'", "'\xf0\x80\x80\x80'", "''a", "'\x80'"}},
        {"{'type':'string','minLength':2,'maxLength':3}",
         {"'ab'", "'abc'", "'\xc3\xa9\xf0\x9f\x98\x80'", "'\\ud83d\\ude00a'", "'\\n\\u0041\\''"},
         {"''", "'a'", "'abcd'", "'\xf0\x9f\x98\x80'", "'\\ud83d\\ude00'"}},
        {"{'type':'string','minLength':1}", {"'a'", "'abcdefghijklmnop'"}, {"''"}},
        {"{'type':'string','maxLength':0}", {"''"}, {"'a'"}},
        {"{'maxLength':1}", {"''", "'a'"}, {"'ab'", "1"}});
}

TEST(Grammar, PatternsAreSearched) {
    CHECK_EXAMPLES(
        {"{'pattern':'^ab+c?$'}", {"'ab'", "'abbbc'"}, {"'a'", "'abcc'", "'xab'", "'abd'"}},
        {"{'pattern':'ab'}", {"'ab'", "'xxabyy'", "'aab'"}, {"''", "'ba'"}},
        {"{'pattern':'^a|b$'}", {"'a'", "'axx'", "'xxb'"}, {"'xax'", "'bx'"}},
        {"{'pattern':'^(foo|ba[rz]){2}$'}", {"'foofoo'", "'barbaz'"}, {"'foo'", "'bat'"}},
        {"{'pattern':'^[^a-c\\\\d]{1,2}$'}", {"'x'", "'x-'"}, {"'a'", "'1'", "''", "'xyz'"}},
        {"{'pattern':'^\\\\w+@\\\\w+\\\\.com$'}", {"'a_1@b.com'"}, {"'a@b-com'", "'@b.com'"}},
        {"{'pattern':'^[\\u00e9-\\u00ff]$'}", {"'\xc3\xa9'", "'\xc3\xbf'"}, {"'\xc3\xa8'", "'e'"}},
        {"{'pattern':'^.$'}", {"'\xf0\x9f\x98\x80'", "'\\''", "'\\\\'"}, {"'\\n'", "''", "'ab'"}},
        {"{'pattern':'^\\\\s$'}", {"' '", "'\\t'", "'\\u000b'", "'\\u000B'"}, {"'\\u0020'", "'x'"}},
        {"{'pattern':'^a*?b{0,2}(?:c|)$'}", {"''", "'aaabbc'", "'c'"}, {"'bbb'", "'cc'"}},
        {"{'pattern':'^a+$','maxLength':3,'minLength':2}", {"'aa'", "'aaa'"}, {"'a'", "'aaaa'"}},
        {"{'pattern':'^\\\\u0041\\\\x42\\\\/$'}", {"'AB/'"}, {"'ab/'"}},
        {"{'pattern':'^(a|b)*a(a|b){4}$'}", {"'abbbb'", "'bbabaab'"}, {"'bbbbb'", "'aaaa'"}},
        {"{'pattern':'^[\\\\D]$'}", {"'x'", "'-'"}, {"'5'", "'\xc3\xa9'"}});
}

TEST(Grammar, FormatsArePatterns) {
    CHECK_EXAMPLES(
        {"{'type':'string','format':'date'}",
         {"'2024-12-31'", "'1999-02-28'", "'2024-02-29'", "'2000-02-29'", "'0004-02-29'",
          "'1912-02-29'", "'0001-01-01'", "'9999-12-31'"},
         {"'2024-13-01'", "'2024-02-30'", "'2024-04-31'", "'24-01-01'", "'0000-01-01'",
          "'2023-02-29'", "'1900-02-29'", "'0000-02-29'", "'2022-02-29'"}},
        {"{'type':'string','format':'time'}",
         {"'23:59:59Z'", "'00:00:00.5+01:00'"},
         {"'24:00:00Z'", "'12:00:00'"}},
        {"{'type':'string','format':'date-time'}",
         {"'2024-12-31T23:59:59Z'", "'2024-02-29T00:00:00+01:00'"},
         {"'2024-12-31 23:59:59Z'"}},
        {"{'type':'string','format':'uuid'}",
         {"'123e4567-e89b-12d3-a456-426614174000'"},
         {"'123e4567-e89b-12d3-a456-42661417400'"}},
        {"{'type':'string','format':'ipv4'}", {"'255.0.10.199'"}, {"'256.0.0.1'", "'1.2.3'"}},
        {"{'type':'string','format':'email'}",
         {"'a.b@c-d.org'", "'john.a.smith@corp.com'", "'a%b+c@x.org'", "'x@a.b.c.d.e.example'"},
         {"'a@b'", "'a b@c.org'", "'x@a--b.com'", "'.a@b.org'", "'a..b@c.org'", "'a@-b.org'",
          "'a@b.1'", "'a@b.o'"}},
        {"{'type':'string','format':'hostname'}",
         {"'localhost'", "'a.b-c.example.com'", "'1.example'"},
         {"''", "'a..b'", "'-a.b'",
          "'abcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefgh'", "'a-.b'",
          "'a_b.org'", "'1.2.3.4'", "'a.b.'"}},
        {"{'type':'string','format':'uri'}",
         {"'https://example.com'", "'http://localhost:8080/a/b%20c/?q=1&r=/x#top'", "'urn:isbn:12'",
          "'mailto:a@b.org'"},
         {"'hello'", "'//a.b'", "'http://'", "'http://a b'", "'http://a/%2'", "'a:b#c#d'",
          "'http://a/\\\\'"}},
        {"{'type':'string','format':'ipv6'}",
         {"'::'", "'::1'", "'fe80::1'", "'2001:db8:0:0:8:800:200C:417a'", "'1:2:3:4:5:6:7::'",
          "'1::3:4:5:6:7:8'"},
         {"'hello'", "'1:2:3:4:5:6:7'", "'1::2::3'", "'12345::'", "':1'", "'1:2:3:4:5:6:7:8:9'"}},
        {"{'type':'string','format':'duration'}",
         {"'P1D'", "'PT5M'", "'P3Y6M4DT12H30M5S'", "'P2W'", "'P1MT1S'"},
         {"'hello'", "'P'", "'PT'", "'1D'", "'P1Y2D'", "'P1W1D'", "'P1DT'"}},
        {"{'type':'string','format':'date','pattern':'^2024-02'}",
         {"'2024-02-29'"},
         {"'2024-03-01'", "'2024-02'", "'2024-02+0'"}},
        {"{'type':'string','format':'uri','minLength':1,'maxLength':2083}",
         {"'https://example.com/'"},
         {"''", "'hello'"}},
        {"{'type':'string','format':'hostname','maxLength':5}", {"'a.com'"}, {"'aa.com'"}},
        {"{'type':'string','format':'no-such-format'}", {"'anything'"}, {"1"}});
}

TEST(Grammar, NumbersKeepTheirBounds) {
    CHECK_EXAMPLES(
        {"{'type':'integer','minimum':5,'maximum':120}",
         {"5", "9", "10", "99", "100", "119", "120"},
         {"4", "0", "121", "130", "200", "05", "-6", "5.0"}},
        {"{'type':'integer','exclusiveMinimum':-3,'exclusiveMaximum':12}",
         {"-2", "-1", "0", "9", "11"},
         {"-3", "-0", "12", "-10"}},
        {"{'type':'integer','minimum':-250,'maximum':-17}",
         {"-17", "-20", "-100", "-250"},
         {"-16", "-251", "17", "0", "-9"}},
        {"{'type':['integer','string'],'minimum':3,'minLength':1}",
         {"3", "17", "'a'"},
         {"2", "''", "3.5"}},
        {"{'type':'integer','minimum':0}",
         {"0", "999999999999999999"},
         {"-1", "1000000000000000000"}},
        {"{'type':'integer','minimum':-9007199254740991,'maximum':9007199254740991}",
         {"9007199254740991", "-9007199254740991", "0", "999999999999999"},
         {"9007199254740992", "-9007199254740992", "10000000000000000"}},
        {"{'type':'integer','exclusiveMinimum':1577836800000000}",
         {"1577836800000001", "99999999999999999"},
         {"1577836800000000", "999", "-1577836800000001"}},
        {"{'allOf':[{'type':'integer','maximum':123456789012345677},{'maximum':123456789012345678}]}",
         {"123456789012345677"},
         {"123456789012345678"}},
        {"{'enum':[9007199254740992,9007199254740993],'maximum':9007199254740992}",
         {"9007199254740992"},
         {"9007199254740993"}},
        {"{'type':'integer','minimum':0,'exclusiveMaximum':9223372036854775807}",
         {"0", "999999999999999999"},
         {"-1"}},
        {"{'type':'integer','minimum':-1e300,'maximum':123456789012345678}",
         {"123456789012345678", "-999999999999999999"},
         {"123456789012345679"}},
        {"{'type':'integer','maximum':1.5,'minimum':-0.5}", {"0", "1"}, {"2", "-1"}},
        {"{'type':'number','minimum':0,'maximum':1}",
         {"0", "0.0", "0.999", "1", "1.0"},
         {"1.1", "-0.1", "1.01", "2", "1e0"}},
        {"{'type':'number','minimum':0.25,'exclusiveMaximum':12.5}",
         {"0.25", "0.250", "0.3", "1", "9.99", "12.49", "12.4", "12", "10.75"},
         {"0.2", "0.24", "0", "12.5", "12.50", "13", "12.6"}},
        {"{'type':'number','exclusiveMinimum':0}", {"0.1", "0.001", "7"}, {"0", "0.0", "-1"}},
        {"{'type':'number','minimum':-1.5,'maximum':-0.5}",
         {"-0.5", "-1.5", "-1", "-0.75", "-1.25"},
         {"-0.4", "-1.6", "0", "1", "-2"}},
        {"{'type':'number','exclusiveMinimum':2.5,'maximum':3}",
         {"2.51", "2.6", "3", "3.0"},
         {"2.5", "2.50", "2", "3.01"}});
}

TEST(Grammar, MultiplesAreCountedByTheirRemainders) {
    CHECK_EXAMPLES(
        {"{'type':'integer','multipleOf':7}",
         {"0", "7", "-7", "14", "98", "700", "999999999999999999", "-999999999999999999"},
         {"1", "8", "-13", "99", "07", "7.0", "999999999999999998", "1000000000000000006"}},
        {"{'type':'integer','multipleOf':5,'minimum':-12,'exclusiveMaximum':105}",
         {"-10", "-5", "0", "5", "95", "100"},
         {"-15", "-12", "3", "104", "105"}},
        {"{'type':'number','multipleOf':100}", {"0", "1200"}, {"50", "100.5", "1e2"}},
        {"{'type':'integer','multipleOf':1,'minimum':3}", {"3", "4"}, {"2"}},
        {"{'type':'integer','multipleOf':256.0,'minimum':1}", {"256", "65536"}, {"0"}});
}

TEST(Grammar, ValuesAreListed) {
    CHECK_EXAMPLES({"{'enum':['a','ab',1,12,null,{'x':[1]}]}",
                    {"'a'", "'ab'", "1", "12", "null", "{'x':[1]}"},
                    {"'b'", "2", "{'x': [1]}", "'abc'"}},
                   {"{'const':'x\xc3\xa9'}", {"'x\xc3\xa9'"}, {"'x'"}},
                   {"{'type':'string','enum':['a',1]}", {"'a'"}, {"1"}},
                   {"{'type':'integer','enum':[3,4]}", {"3"}, {"5"}},
                   {"{'enum':['a','b'],'const':'b'}", {"'b'"}, {"'a'"}});
}

TEST(Grammar, ValuesThatOtherKeywordsForbidAreLeftOut) {
    CHECK_EXAMPLES(
        {"{'enum':['a','\u20ac\u20ac',7,null],'minLength':2}",
         {"'\xe2\x82\xac\xe2\x82\xac'", "7", "null"},
         {"'a'"}},
        {"{'enum':['ab','abc'],'maxLength':2}", {"'ab'"}, {"'abc'"}},
        {"{'enum':['ab','cd',1],'pattern':'^a'}", {"'ab'", "1"}, {"'cd'"}},
        {"{'enum':[1,2,3.5,'9'],'minimum':2,'exclusiveMaximum':3.5}", {"2", "'9'"}, {"1", "3.5"}},
        {"{'enum':[1,2],'exclusiveMinimum':1,'maximum':2}", {"2"}, {"1"}},
        {"{'enum':[[],[1],[1,2]],'minItems':1,'maxItems':1}", {"[1]"}, {"[]", "[1,2]"}},
        {"{'enum':[{'a':1},{'b':1}],'required':['b']}", {"{'b':1}"}, {"{'a':1}"}});
}

TEST(Grammar, BranchesThatNothingFitsAreLeftOut) {
    CHECK_EXAMPLES(
        {"{'type':'object','anyOf':[{'type':'null'},{'required':['a']}]}", {"{'a':1}"}, {"null"}},
        {"{'const':'a','anyOf':[{'const':'b'},{'enum':['a','c']}]}", {"'a'"}, {"'b'", "'c'"}},
        {"{'type':'string','anyOf':[{'enum':[1]},{'enum':['x']}]}", {"'x'"}, {"1"}},
        {"{'enum':['a','b'],'oneOf':[{'enum':['c']},{'enum':['a','d']}]}", {"'a'"}, {"'b'", "'c'"}},
        {"{'properties':{'a':{'allOf':[{'type':'string'},{'type':'null'}]},'b':{}}}",
         {"{}", "{'b':1}"},
         {"{'a':null}", "{'a':''}"}});
}

TEST(Grammar, RealsAreWrittenInFewDigits) {
    CHECK_EXAMPLES(
        {"{'enum':[0.1,1e22,-2.5,5.0]}",
         {"0.1", "1e+22", "-2.5", "5.0"},
         {"0.10000000000000001", "1", "5"}},
        {"{'const':{'a.e1':[0.3,'1.10e5 \\'1.50',1e-7,12,true,null]}}",
         {"{'a.e1':[0.3,'1.10e5 \\'1.50',1e-07,12,true,null]}"},
         {"{'a.e1':[0.29999999999999999,'1.10e5 \\'1.50',1e-07,12,true,null]}"}},
        {"{'type':'integer','const':1.0}", {"1"}, {"1.0", "2"}},
        {"{'type':'integer','enum':[1.0,2,2.5,-3e2,'a']}", {"1", "2", "-300"}, {"2.5", "'a'"}},
        {"{'type':['integer','number'],'enum':[1.0,2.5]}", {"1.0", "2.5"}, {"2"}});
}

TEST(Grammar, ObjectsHaveTheirPropertiesInOrder) {
    CHECK_EXAMPLES(
        {"{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'null'},"
         "'c':{'type':'boolean'}},'required':['b'],'additionalProperties':false}",
         {"{'b':null}", "{'a':1,'b':null}", "{'a': 1, 'b': null, 'c': true}",
          "{'b':null,'c':false}"},
         {"{}", "{'a':1}", "{'b':null,'a':1}", "{'b':null,}", "{'b':null,'d':1}", "{ 'b':null}",
          "{'b':  null}", "{'b':null }", "{'b':null,'b':null}"}},
        {"{'properties':{'a':true}}", {"{}", "{'a':[1,{'x':null}]}"}, {"{'b':1}", "1"}},
        {"{'type':'object','properties':{'a':{'type':'integer'},'ab':{'type':'integer'}},"
         "'additionalProperties':{'type':'string'}}",
         {"{}", "{'a':1}", "{'a':1,'ab':2,'x':'y'}", "{'x':'y','z':'w'}", "{'':'y'}", "{'abc':''}",
          "{'b':''}"},
         {"{'a':'y'}", "{'x':1}", "{'x':'y','a':1}", "{'a':1,'a':'x'}", "{'\\u0061':'y'}",
          "{'x':'y','ab':'z'}"}},
        {"{'type':'object'}", {"{}", "{'a': {'b': []}}"}, {"[]", "{'a':1,}", "{'a'}"}},
        {"{'type':'object','additionalProperties':false}", {"{}"}, {"{'a':1}"}},
        {"{'type':'object','additionalProperties':{'type':'integer'}}",
         {"{}", "{'a':1,'b':2}"},
         {"{'a':'1'}"}},
        {"{'type':'object','required':['x'],'additionalProperties':{'type':'integer'}}",
         {"{'x':1}", "{'x':1,'y':2}"},
         {"{}", "{'y':2}", "{'x':'1'}"}},
        {"{'type':'object','properties':{'q\\u00e9\\'\\n':{'type':'null'}},'required':['q\\u00e9\\'"
         "\\n']}",
         {"{'q\xc3\xa9\\'\\n':null}"},
         {"{'q':null}"}},
        {"{'type':'object','properties':{'a':false,'b':true},'additionalProperties':true}",
         {"{'b':1}", "{'c':1}"},
         {"{'a':1}"}});
}

TEST(Grammar, NamesMayBeListed) {
    CHECK_EXAMPLES(
        {"{'type':'object','propertyNames':{'enum':['b','a',1]},'additionalProperties':{'type':"
         "'integer'}}",
         {"{}", "{'b':1}", "{'b':1,'a':2}", "{'a':2}"},
         {"{'c':1}", "{'a':'x'}", "{'a':1,'a':1}"}},
        {"{'propertyNames':{'type':'string','const':'a'},'required':['a']}", {"{'a':1}"}, {"{}"}},
        {"{'$defs':{'k':{'enum':['a','b']}},'propertyNames':{'$ref':'#/$defs/k'},'properties':{'a':"
         "{'type':'null'},'c':{'type':'null'}},'additionalProperties':true}",
         {"{'a':null}", "{'a':null,'b':1}", "{}"},
         {"{'c':null}", "{'a':1}"}},
        {"{'type':'object','minProperties':1,'required':['a']}", {"{'a':1}"}, {"{}"}});
}

TEST(Grammar, ArraysHaveTheirElements) {
    CHECK_EXAMPLES(
        {"{'type':'array'}", {"[]", "[1, 'a', [null]]"}, {"[1,]", "[,1]", "[ 1]", "{}"}},
        {"{'type':'array','items':{'type':'integer'}}", {"[]", "[1,2, 3]"}, {"['a']", "[1,'a']"}},
        {"{'items':{'type':'integer'},'minItems':2,'maxItems':3}",
         {"[1,2]", "[1,2,3]"},
         {"[]", "[1]", "[1,2,3,4]"}},
        {"{'items':{'type':'integer'},'minItems':2}", {"[1,2]", "[1,2,3,4,5]"}, {"[]", "[1]"}},
        {"{'items':{'type':'integer'},'minItems':1}", {"[1]", "[1,2]"}, {"[]"}},
        {"{'items':{'type':'integer'},'maxItems':1}", {"[]", "[1]"}, {"[1,2]"}},
        {"{'items':{'type':'integer'},'maxItems':0}", {"[]"}, {"[1]"}},
        {"{'prefixItems':[{'type':'integer'},{'type':'string'}]}",
         {"[]", "[1]", "[1,'a']"},
         {"['a']", "[1,'a',2]"}},
        {"{'prefixItems':[{'type':'integer'}],'items':{'type':'null'},'minItems':3}",
         {"[1,null,null]", "[1,null,null,null]"},
         {"[1,null]", "[1,1,1]"}},
        {"{'prefixItems':[{'type':'integer'}],'items':false,'minItems':1}", {"[1]"}, {"[]"}});
}

TEST(Grammar, BranchesAndReferences) {
    CHECK_EXAMPLES(
        {"{'anyOf':[{'type':'integer'},{'type':'string','maxLength':1}]}",
         {"12", "'a'"},
         {"'ab'", "null"}},
        {"{'type':'object','properties':{'a':{'type':'integer'},'b':{'type':'integer'}},"
         "'anyOf':[{'required':['a']},{'required':['b']}]}",
         {"{'a':1}", "{'b':1}", "{'a':1,'b':2}"},
         {"{}"}},
        {"{'oneOf':[{'type':'object','properties':{'t':{'const':'a'},'x':{'type':'integer'}},"
         "'required':['t','x']},{'type':'object','properties':{'t':{'const':'b'}},'required':['t']}]}",
         {"{'t':'a','x':1}", "{'t':'b'}"},
         {"{'t':'a'}", "{'t':'c'}", "{'t':'b','x':1}"}},
        {"{'$defs':{'A':{'type':'object','properties':{'kind':{'const':'a','default':'a'},'kids':"
         "{'type':'array','items':{'oneOf':[{'$ref':'#/$defs/A'},{'$ref':'#/$defs/B'}]}}}},"
         "'B':{'type':'object','properties':{'v':{'type':'null'},'kind':{'const':'b'}},"
         "'required':['v']}},'oneOf':[{'$ref':'#/$defs/A'},{'$ref':'#/$defs/B'}],"
         "'discriminator':{'propertyName':'kind'}}",
         {"{'kind':'a'}", "{'v':null,'kind':'b'}",
          "{'kind':'a','kids':[{'kind':'a','kids':[]},{'v':null,'kind':'b'}]}"},
         {"{}", "{'v':null}", "{'kids':[]}", "{'kind':'a','kids':[{}]}"}},
        {"{'$defs':{'t':{'enum':[1,'b',1,null]}},'oneOf':[{'type':'object','required':['t'],"
         "'properties':{'t':{'$ref':'#/$defs/t'}}},{'type':'object','required':['t'],"
         "'properties':{'t':{'const':'1'}}}]}",
         {"{'t':1}", "{'t':'b'}", "{'t':null}", "{'t':'1'}"},
         {"{}", "{'t':2}", "'b'"}},
        {"{'oneOf':[{'type':'integer','maximum':3},{'type':'number','exclusiveMinimum':3}]}",
         {"3", "-7", "3.5", "4"},
         {"3.0", "2.5"}},
        {"{'oneOf':[{'type':'string','minLength':3},{'type':'string','maxLength':1}]}",
         {"'a'", "'abc'"},
         {"'ab'"}},
        {"{'oneOf':[{'type':'null'},{'enum':[1,2]},{'enum':['x']}]}", {"null", "2", "'x'"}, {"3"}},
        {"{'$defs':{'n':{'type':'object','properties':{'v':{'type':'integer'},'next':{'anyOf':["
         "{'$ref':'#/$defs/n'},{'type':'null'}]}},'required':['v','next']}},'$ref':'#/$defs/n'}",
         {"{'v':1,'next':null}", "{'v':1,'next':{'v':2,'next':{'v':3,'next':null}}}"},
         {"{'v':1}", "{'v':1,'next':{}}", "{'v':1,'next':{'v':2,'next':null}"}},
        {"{'type':'array','items':{'$ref':'#'}}", {"[]", "[[],[[],[]]]"}, {"[1]", "[[]"}},
        {"{'definitions':{'a/b~c':{'type':'null'}},'$ref':'#/definitions/a~1b~0c'}",
         {"null"},
         {"1"}},
        {"{'allOf':[{'type':'object','properties':{'a':{'type':'integer','minimum':3}},"
         "'required':['a']},{'properties':{'a':{'maximum':5},'b':{'type':'null'}}}]}",
         {"{'a':3}", "{'a':5,'b':null}"},
         {"{'a':2}", "{'a':6}", "{}"}},
        {"{'allOf':[{'$ref':'#/$defs/x'}],'description':'d','$defs':{'x':{'enum':['p','q']}}}",
         {"'p'"},
         {"'r'"}},
        {"{'$ref':'#/$defs/x','maxLength':2,'$defs':{'x':{'type':'string','minLength':2}}}",
         {"'ab'"},
         {"'a'", "'abc'"}},
        {"{'anyOf':[{'const':1},{'type':'string','enum':['a',3]},{'type':'null'}],'title':'t'}",
         {"1", "'a'", "null"},
         {"3", "2"}},
        {"{'minLength':2,'anyOf':[{'const':'a'},{'enum':['ab','b']}]}", {"'ab'"}, {"'a'", "'b'"}},
        {"true", {"1", "{'a':[{}]}"}, {"x"}}, {"{}", {"'a'", "[[]]"}, {"["}});
}

TEST(Grammar, NamesWhatItRefusesAndWhere) {
    static const char *const cases[][2] = {
        {"{'type':'integer','multipleOf':0}", "#: multipleOf: whole numbers from 1 to 256"},
        {"{'type':'number','multipleOf':0.5}", "#: multipleOf: whole numbers from 1 to 256"},
        {"{'multipleOf':257}", "#: multipleOf: whole numbers from 1 to 256"},
        {"{'multipleOf':'2'}", "#: multipleOf: whole numbers from 1 to 256"},
        {"{'type':'integer','multipleOf':7,'minimum':8,'maximum':13}", "no document"},
        {"{'properties':{'a':{'items':{'not':{}}}}}", "#/properties/a/items: not is not supported"},
        {"{'anyOf':[{},{'pattern':'(?=a)'}]}", "#/anyOf/1: pattern: of the groups"},
        {"{'pattern':'a('}", "#: pattern: a ( has no )"},
        {"{'pattern':'a)'}", "#: pattern: a ) has no ("},
        {"{'pattern':'[b-a]'}", "goes backwards"},
        {"{'pattern':'^x','format':'date'}", "no document"},
        {"{'pattern':'a**'}", "nothing to belong to"},
        {"{'pattern':'a{2,1}'}", "{n,m}"},
        {"{'pattern':'a{2'}", "{n,m}"},
        {"{'pattern':'a^b'}", "^ and $"},
        {"{'pattern':'\\\\p{L}'}", "escape"},
        {"{'pattern':'(a)\\\\1'}", "escape"},
        {"{'pattern':'\\\\bx'}", "\\b"},
        {"{'pattern':'a++'}", "possessive"},
        {"{'pattern':'a\\\\'}", "backslash"},
        {"{'pattern':'[]'}", "empty []"},
        {"{'pattern':'[a'}", "no ]"},
        {"{'pattern':'((a{1000}){1000}){1000}'}", "too complex"},
        {"{'pattern':'^(a|b)*a(a|b){20}$'}", "too complex"},
        {"{'type':'strin'}", "#: type: expected one of"},
        {"{'type':[]}", "#: type"},
        {"{'$ref':'#/$defs/x'}", "there is no such place"},
        {"{'$ref':'http://x'}", "only places within"},
        {"{'$ref':'#'}", "#: a $ref leads back to itself"},
        {"{'anyOf':[{'$ref':'#'},{'type':'null'}]}", "leads back to itself"},
        {"{'properties':{'a':{'$ref':'#'}},'required':['a']}", "no document of finite size"},
        {"{'enum':[]}", "#: enum: expected"},
        {"{'type':'string','enum':[1]}", "no value"},
        {"{'enum':['a'],'minLength':2}", "no value of enum"},
        {"{'enum':[{'a':1}],'properties':{'a':{}}}", "properties is not supported beside enum"},
        {"{'minLength':3,'maxLength':2}", "minLength is more"},
        {"{'type':'string','format':'hostname','minLength':70}",
         "63 characters that format hostname"},
        {"{'type':'string','format':'email','minLength':70}", "63 characters that format email"},
        {"{'minLength':-1}", "minLength: expected a whole number"},
        {"{'minLength':5000}", "at most 4096"},
        {"{'minItems':3,'maxItems':2}", "minItems is more"},
        {"{'type':'integer','minimum':3,'maximum':2}", "no number is within"},
        {"{'type':'integer','exclusiveMinimum':3,'maximum':3}", "no number is within"},
        {"{'minimum':true}", "expected a number"},
        {"{'type':'integer','minimum':1000000000000000000}", "too many digits"},
        {"{'type':'integer','maximum':-9223372036854775807}", "too many digits"},
        {"{'type':'integer','minimum':1.2,'maximum':1.8}", "no number is within"},
        {"{'type':'number','minimum':1577836800000000}", "too many digits"},
        {"{'type':'number','minimum':0.1234567890123456}", "too many digits"},
        {"{'required':['a'],'additionalProperties':false}", "\"a\" is not in properties"},
        {"{'required':[1]}", "required: expected"},
        {"{'properties':[]}", "properties: expected"},
        {"{'items':[]}", "use prefixItems"},
        {"{'oneOf':[{'type':'integer'},{'type':'number'}]}", "cannot tell"},
        {"{'oneOf':[{'properties':{'m':{'const':2}},'required':['m']},"
         "{'allOf':[{'properties':{'m':{'const':'1'}},'required':['m'],'enum':[[1],'c']},true]}]}",
         "#/oneOf"}, /* 'c' is in both */
        {"{'oneOf':[{'type':'object'},{'type':'object'}]}", "branches 0 and 1"},
        {"{'oneOf':[{'const':1},{'const':1.0}]}", "branches 0 and 1"},
        {"{'oneOf':[{'type':'integer','maximum':3},{'type':'number','minimum':3}]}", "cannot tell"},
        {"{'oneOf':[{'type':'object','properties':{'t':{'const':1}},'required':['t']},"
         "{'type':'object','properties':{'t':{'const':1.0}},'required':['t']}]}",
         "branches 0 and 1"},
        {"{'oneOf':[{'type':'object','properties':{'t':{'enum':['a','b']}},'required':['t']},"
         "{'type':'object','properties':{'t':{'enum':['c','b']}},'required':['t']}]}",
         "branches 0 and 1"},
        {"{'oneOf':[{'properties':{'a':{'const':1}}},{'properties':{'a':{'enum':[2,1]}}}]}",
         "#/oneOf/1: cannot tell"},
        {"{'anyOf':[{'const':1,'not':{}},{'const':2}]}", "#/anyOf/0: not is not supported"},
        {"{'anyOf':[{'enum':3},{'const':2}]}", "#/anyOf/0: enum: expected"},
        {"{'allOf':[{'type':'string'},{'type':'null'}]}", "no type or value in common"},
        {"{'allOf':[{'enum':[1]},{'enum':[2]}]}", "#: the schemas of allOf"},
        {"{'type':'object','anyOf':[{'type':'null'},{'const':1}]}", "#/anyOf/0: this and what"},
        {"{'allOf':[{'pattern':'a'},{'pattern':'b'}]}", "two different pattern"},
        {"{'allOf':[]}", "allOf: expected"},
        {"{'$defs':{'a':{'allOf':[{'$ref':'#/$defs/a'}]}},'$ref':'#/$defs/a'}", "without end"},
        {"{'patternProperties':{'a':{}}}", "patternProperties"},
        {"{'propertyNames':{'type':'integer'}}", "#/propertyNames: only type string"},
        {"{'propertyNames':{'type':'string','maxLength':3}}", "#/propertyNames: only type string"},
        {"{'propertyNames':false}", "#/propertyNames: only type string"},
        {"{'propertyNames':{'enum':['a']},'required':['b']}", "\"b\" is not in propertyNames"},
        {"{'minProperties':1}", "minProperties"},
        {"{'minProperties':2,'required':['a','a']}", "minProperties"},
        {"{'uniqueItems':true}", "uniqueItems"},
        {"{'if':{},'then':{'const':1}}", "not supported"},
        {"{'properties':{'a':{'$id':'x'}}}", "$id"},
        {"3", "expected an object or a boolean"},
        {"false", "no document"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text = grammar_refusal(cases[i][0]);
        if (!strstr(text, cases[i][1]))
            FAIL("%s: \"%s\" does not say \"%s\"", cases[i][0], text, cases[i][1]);
    }
    EXPECT_STR_EQ(grammar_refusal("{'type':'integer','title':'t','x-y':1,'uniqueItems':false}"),
                  "");
    EXPECT_STR_EQ(grammar_refusal("{'type':'object','propertyNames':{'type':'string'}}"), "");
}

TEST(Grammar, AChainOfReferencesIsNotALoop) {
    char schema[16384];
    int len = snprintf(schema, sizeof schema, "{'$ref':'#/$defs/d130','$defs':{'d0':{}");
    for (int i = 1; i <= 130; i++)
        len += snprintf(schema + len, sizeof schema - (size_t)len, ",'d%d':{'$ref':'#/$defs/d%d'}",
                        i, i - 1);
    snprintf(schema + len, sizeof schema - (size_t)len, "}}");
    EXPECT_STR_EQ(grammar_refusal(schema),
                  "#: too many $ref lead to each other with nothing in between");
}

TEST(Grammar, ANameWithANulCannotBeRequired) {
    json_t *schema = json_pack("{s:s,s:[s%]}", "type", "object", "required", "a\0b", (size_t)3);
    struct grammar *g = NULL;
    struct error e = {0};
    EXPECT_INT_EQ(grammar_create_json_schema(schema, &g, &e), ERR_INVALID_REQUEST);
    EXPECT_TRUE(strstr(e.text, "a name with U+0000 is not supported"));
    json_decref(schema);
}

TEST(Grammar, NestsAsDeepAsItMay) {
    struct grammar_pool *pool = byte_pool();
    struct grammar *g = grammar_from("{'type':'array','items':{'$ref':'#'}}");
    char text[600];
    for (int depth = 1; depth < 300; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        int64_t n = grammar_take(pool, g, text, 2 * (size_t)depth);
        EXPECT_INT_EQ(n, depth <= 129 ? -1 : 129);
    }
    grammar_release(g);
    grammar_pool_destroy(pool);
}
