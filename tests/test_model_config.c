/* config.json of every family: published configs, defaults, refusals, and the figures made from
 * them. */
#include "host/model_config.h"

#include <stdio.h>
#include <string.h>

#include "host/model_families.h"
#include "tests/shim.h"
#include "tests/tensor_file.h"

/* Texts use ' for ". */
static int parse(const char *text, struct model_config *c, struct error *e) {
    char json[4096];
    size_t n = strlen(text);
    memset(e, 0, sizeof *e);
    for (size_t i = 0; i <= n; i++)
        json[i] = text[i] == '\'' ? '"' : text[i];
    return model_config_parse(json, n, "config.json", c, e);
}

static void expect_parses(const char *text, struct model_config *c) {
    struct error e;
    if (parse(text, c, &e) != 0)
        FAIL("%s: %s", text, e.text);
}

/* ----------------------------------------------------------------------- published dimensions */

#define SIZES(L, H, Hq, I, V)                                                                      \
    "'num_hidden_layers':" #L ",'hidden_size':" #H ",'num_attention_heads':" #Hq                   \
    ",'intermediate_size':" #I ",'vocab_size':" #V

/* clang-format off */
static const char skywork_moe[] =
    "{'model_type':'skywork_moe'," SIZES(52, 4608, 36, 12288, 65532)
    ",'architectures':['SkyworkForCausalLM'],'num_key_value_heads':36,'num_experts':[16],"
    "'max_position_embeddings':8192,'rms_norm_eps':1e-06,'rope_theta':10000,'rope_scaling':null,"
    "'rotary_percent':1.0,'moe_expert_interval':1,'moe_use_logits_norm':true,"
    "'moe_gate_norm_std':1.0,'moe_2layer_gate':false,'moe_use_skywork_gating':false,"
    "'moe_feature_no_mul_topk':true,'bos_token_id':1,'eos_token_id':2,'pad_token_id':0,"
    "'hidden_act':'silu','tie_word_embeddings':false,'torch_dtype':'bfloat16',"
    "'quantization_config':{'quant_method':'fp8','activation_scheme':'dynamic'}}";
static const char mixtral_8x7b[] =
    "{'model_type':'mixtral'," SIZES(32, 4096, 32, 14336, 32000)
    ",'num_key_value_heads':8,'num_local_experts':8,'num_experts_per_tok':2,'rope_theta':1e6,"
    "'rms_norm_eps':1e-5,'max_position_embeddings':32768,'sliding_window':null}";
static const char mixtral_8x22b[] =
    "{'model_type':'mixtral'," SIZES(56, 6144, 48, 16384, 32000)
    ",'num_key_value_heads':8,'num_local_experts':8,'num_experts_per_tok':2,"
    "'rope_theta':1000000,'max_position_embeddings':65536}";
static const char qwen3_30b[] =
    "{'model_type':'qwen3_moe'," SIZES(48, 2048, 32, 6144, 151936)
    ",'num_key_value_heads':4,'head_dim':128,'moe_intermediate_size':768,'num_experts':128,"
    "'num_experts_per_tok':8,'norm_topk_prob':true,'decoder_sparse_step':1,"
    "'mlp_only_layers':[],'rope_theta':1000000.0,'max_position_embeddings':40960,"
    "'max_window_layers':48,'use_sliding_window':false,'sliding_window':null,"
    "'attention_bias':false,'bos_token_id':151643,'eos_token_id':151645}";
static const char olmoe[] =
    "{'model_type':'olmoe'," SIZES(16, 2048, 16, 1024, 50304)
    ",'num_key_value_heads':16,'num_experts':64,'num_experts_per_tok':8,'clip_qkv':null,"
    "'norm_topk_prob':false,'eos_token_id':50279,'pad_token_id':1}";
static const char deepseek_67b[] =
    "{'model_type':'llama'," SIZES(95, 8192, 64, 22016, 102400)
    ",'num_key_value_heads':8,'max_position_embeddings':4096,'bos_token_id':100000,"
    "'eos_token_id':100001}";
static const char qwen15_72b[] =
    "{'model_type':'qwen2'," SIZES(80, 8192, 64, 24576, 152064)
    ",'num_key_value_heads':64,'rope_theta':1000000,'use_sliding_window':false,"
    "'sliding_window':32768,'max_window_layers':70,'eos_token_id':151645}";
static const char llama2_70b[] =
    "{'model_type':'llama'," SIZES(80, 8192, 64, 28672, 32000) ",'num_key_value_heads':8}";
static const char llama3_70b[] =
    "{'model_type':'llama'," SIZES(80, 8192, 64, 28672, 128256)
    ",'num_key_value_heads':8,'rope_theta':500000.0,'bos_token_id':128000,"
    "'eos_token_id':[128001,128009]}";
static const char skywork_13b[] =
    "{'model_type':'skywork'," SIZES(52, 4608, 36, 12288, 65519)
    ",'rms_norm_eps':1e-06,'max_position_embeddings':4096}";
/* clang-format on */

TEST(ModelConfig, ParameterCountsOfPublishedModels) {
    static const struct {
        const char *text;
        double total, active; /* billions, embeddings included */
    } table[] = {
        {skywork_moe, 146.36, 22.69}, {mixtral_8x7b, 46.70, 12.88}, {mixtral_8x22b, 140.62, 39.15},
        {qwen3_30b, 30.53, 3.35},     {olmoe, 6.92, 1.28},          {deepseek_67b, 67.42, 67.42},
        {qwen15_72b, 72.29, 72.29},   {llama2_70b, 68.98, 68.98},   {llama3_70b, 70.55, 70.55},
        {skywork_13b, 13.85, 13.85},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct model_config c;
        expect_parses(table[i].text, &c);
        EXPECT_NEAR((double)model_config_parameters(&c) / 1e9, table[i].total, 0.01);
        EXPECT_NEAR((double)model_config_active_parameters(&c) / 1e9, table[i].active, 0.01);
    }
}

TEST(ModelConfig, SkyworkMoe) {
    struct model_config c;
    expect_parses(skywork_moe, &c);
    EXPECT_STR_EQ(c.model_type, "skywork_moe");
    EXPECT_STR_EQ(c.family, "skywork_moe");
    EXPECT_INT_EQ(c.num_hidden_layers, 52);
    EXPECT_INT_EQ(c.hidden_size, 4608);
    EXPECT_INT_EQ(c.num_attention_heads, 36);
    EXPECT_INT_EQ(c.num_key_value_heads, 36);
    EXPECT_INT_EQ(c.head_dim, 128);
    EXPECT_INT_EQ(c.vocab_size, 65532);
    EXPECT_INT_EQ(c.max_position_embeddings, 8192);
    EXPECT_INT_EQ(c.intermediate_size, 0);
    EXPECT_INT_EQ(c.moe_intermediate_size, 12288);
    EXPECT_INT_EQ(c.router.num_experts, 16);
    EXPECT_INT_EQ(c.router.num_experts_per_tok, 2); /* not in the file */
    EXPECT_TRUE(c.router.norm_topk_prob);
    EXPECT_NEAR(c.router.logits_std, 1, 0);
    EXPECT_NEAR(c.router.routed_scaling_factor, 1, 0);
    EXPECT_NEAR(c.rms_norm_eps, 1e-6, 1e-12);
    EXPECT_TRUE(c.fp8);
    EXPECT_FALSE(c.attention_bias);
    EXPECT_INT_EQ(c.layer_is_moe[0] + c.layer_is_moe[51], 2);
    EXPECT_INT_EQ(c.bos_token_id, 1);
    EXPECT_INT_EQ(c.num_eos_token_ids, 1);
    EXPECT_INT_EQ(c.eos_token_ids[0], 2);
    EXPECT_STR_EQ(c.names.expert_up, "block_sparse_moe.experts.%d.w3.weight");
}

TEST(ModelConfig, FieldsOfTheOtherFamilies) {
    struct model_config c;
    expect_parses(mixtral_8x7b, &c);
    EXPECT_INT_EQ(c.sliding_window, 0);
    EXPECT_NEAR(c.rope_theta, 1e6, 0);
    EXPECT_TRUE(c.router.norm_topk_prob);
    EXPECT_NEAR(c.router.logits_std, 0, 0);
    EXPECT_FALSE(c.fp8);
    expect_parses(qwen3_30b, &c);
    EXPECT_INT_EQ(c.head_dim, 128); /* not hidden_size / heads */
    EXPECT_INT_EQ(c.moe_intermediate_size, 768);
    EXPECT_INT_EQ(c.intermediate_size, 0);
    EXPECT_INT_EQ(c.qk_norm, QK_NORM_HEAD);
    EXPECT_TRUE(c.router.norm_topk_prob);
    EXPECT_INT_EQ(c.bos_token_id, 151643);
    expect_parses(olmoe, &c);
    EXPECT_INT_EQ(c.qk_norm, QK_NORM_PROJECTION);
    EXPECT_FALSE(c.router.norm_topk_prob);
    EXPECT_NEAR(c.clip_qkv, 0, 0);
    EXPECT_NEAR(c.rms_norm_eps, 1e-5, 1e-11);
    EXPECT_INT_EQ(c.bos_token_id, -1);
    expect_parses(qwen15_72b, &c);
    EXPECT_TRUE(c.attention_bias);
    EXPECT_INT_EQ(c.sliding_window, 0);
    EXPECT_INT_EQ(c.router.num_experts, 0);
    expect_parses(llama3_70b, &c);
    EXPECT_INT_EQ(c.num_eos_token_ids, 2);
    EXPECT_INT_EQ(c.eos_token_ids[1], 128009);
    EXPECT_INT_EQ(c.intermediate_size, 28672);
    EXPECT_INT_EQ(c.moe_intermediate_size, 0);
    expect_parses(skywork_13b, &c);
    EXPECT_STR_EQ(c.family, "skywork");
    EXPECT_INT_EQ(c.num_key_value_heads, 36);
    EXPECT_NEAR(c.rope_theta, 1e4, 0);
}

/* ------------------------------------------------------------------------------------ details */

/* A family's smallest config plus some keys. */
#define SMALL(family, more) "{'model_type':'" family "'," SIZES(4, 64, 8, 96, 100) more "}"

TEST(ModelConfig, MissingKeysHaveTheDefaultsOfTheFamily) {
    static const struct {
        const char *text;
        int32_t kv, experts, top_k, positions, bos, eos;
        double eps, theta;
        bool norm_topk;
    } table[] = {
        {SMALL("mixtral", ""), 8, 8, 2, 131072, 1, 2, 1e-5, 1e6, true},
        {SMALL("qwen3_moe", ",'moe_intermediate_size':6"), 4, 128, 8, 32768, -1, -1, 1e-6, 1e4,
         false},
        {SMALL("olmoe", ""), 8, 64, 8, 4096, -1, -1, 1e-5, 1e4, false},
        {SMALL("llama", ""), 8, 0, 0, 2048, 1, 2, 1e-6, 1e4, false},
        {SMALL("qwen2", ",'num_key_value_heads':2"), 2, 0, 0, 32768, -1, -1, 1e-6, 1e4, false},
        {SMALL("skywork", ""), 8, 0, 0, 4096, 1, 2, 1e-6, 1e4, false},
        {SMALL("skywork_moe", ",'num_experts':4"), 8, 4, 2, 4096, 1, 2, 1e-6, 1e4, true},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct model_config c;
        expect_parses(table[i].text, &c);
        EXPECT_INT_EQ(c.num_key_value_heads, table[i].kv);
        EXPECT_INT_EQ(c.router.num_experts, table[i].experts);
        EXPECT_INT_EQ(c.router.num_experts_per_tok, table[i].top_k);
        EXPECT_INT_EQ(c.max_position_embeddings, table[i].positions);
        EXPECT_INT_EQ(c.bos_token_id, table[i].bos);
        EXPECT_INT_EQ(c.num_eos_token_ids ? c.eos_token_ids[0] : -1, table[i].eos);
        EXPECT_NEAR(c.rms_norm_eps, table[i].eps, 1e-12);
        EXPECT_NEAR(c.rope_theta, table[i].theta, 0);
        EXPECT_INT_EQ(c.router.norm_topk_prob, table[i].norm_topk);
        EXPECT_FALSE(c.tie_word_embeddings);
        EXPECT_INT_EQ(c.torch_dtype, DTYPE_BF16);
        EXPECT_INT_EQ(c.head_dim, 8);
    }
}

TEST(ModelConfig, DenseTypeWithExpertsIsSkyworkMoe) {
    struct model_config c;
    expect_parses(SMALL("skywork", ",'num_experts':[3]"), &c);
    EXPECT_STR_EQ(c.family, "skywork_moe");
    EXPECT_STR_EQ(c.model_type, "skywork");
    EXPECT_INT_EQ(c.router.num_experts, 3);
    EXPECT_NEAR(c.router.logits_std, 0, 0); /* no moe_use_logits_norm: no normalisation */
    expect_parses(SMALL("skywork", ",'num_experts':null"), &c);
    EXPECT_STR_EQ(c.family, "skywork");
    expect_parses(
        SMALL("skywork_moe", ",'num_experts':3,'moe_use_logits_norm':false,'moe_gate_norm_std':2"),
        &c);
    EXPECT_NEAR(c.router.logits_std, 0, 0);
    expect_parses(
        SMALL("skywork_moe", ",'num_experts':3,'moe_use_logits_norm':true,'moe_gate_norm_std':2"),
        &c);
    EXPECT_NEAR(c.router.logits_std, 2, 0);
}

TEST(ModelConfig, SparseLayersFollowStepAndList) {
    struct model_config c;
    expect_parses(SMALL("qwen3_moe", ",'moe_intermediate_size':6,'decoder_sparse_step':2"), &c);
    EXPECT_MEM_EQ(c.layer_is_moe, "\0\1\0\1", 4);
    EXPECT_INT_EQ(c.intermediate_size, 96);
    expect_parses(SMALL("qwen3_moe", ",'moe_intermediate_size':6,'mlp_only_layers':[0,2,77]"), &c);
    EXPECT_MEM_EQ(c.layer_is_moe, "\0\1\0\1", 4);
    EXPECT_INT_EQ(c.layer_is_moe[77], 0);
    /* No layer is left with experts: a dense model, whose moe_intermediate_size may be missing. */
    expect_parses(SMALL("qwen3_moe", ",'mlp_only_layers':[0,1,2,3]"), &c);
    EXPECT_INT_EQ(c.router.num_experts, 0);
    EXPECT_INT_EQ(c.moe_intermediate_size, 0);
}

TEST(ModelConfig, SlidingWindows) {
    static const struct {
        const char *text;
        int32_t window;
    } table[] = {
        {SMALL("mixtral", ",'sliding_window':7"), 7},
        {SMALL("mixtral", ",'sliding_window':null"), 0},
        {SMALL("llama", ",'sliding_window':7"), 0}, /* transformers ignores it too */
        {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'sliding_window':7"), 0},
        {SMALL("qwen3_moe",
               ",'moe_intermediate_size':6,'sliding_window':7,'use_sliding_window':true"),
         7},
        {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'use_sliding_window':true"), 4096},
        {SMALL("qwen2", ",'num_key_value_heads':8,'use_sliding_window':true"), 0}, /* 28 full */
        {SMALL("qwen2", ",'num_key_value_heads':8,'use_sliding_window':true,'sliding_window':9,"
                        "'max_window_layers':0"),
         9},
        {SMALL("qwen2", ",'num_key_value_heads':8,'use_sliding_window':true,'sliding_window':9,"
                        "'layer_types':['full_attention','full_attention','full_attention',"
                        "'full_attention'],'max_window_layers':0"),
         0},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct model_config c;
        expect_parses(table[i].text, &c);
        EXPECT_INT_EQ(c.sliding_window, table[i].window);
    }
}

TEST(ModelConfig, BothSpellingsOfRope) {
    struct model_config c;
    expect_parses(SMALL("llama", ",'rope_parameters':{'rope_type':'default','rope_theta':77}"), &c);
    EXPECT_INT_EQ(c.rope_type, ROPE_DEFAULT);
    EXPECT_NEAR(c.rope_theta, 77, 0);
    expect_parses(SMALL("llama", ",'rope_scaling':{'type':'linear','factor':4}"), &c);
    EXPECT_INT_EQ(c.rope_type, ROPE_LINEAR);
    EXPECT_NEAR(c.rope_factor, 4, 0);
    EXPECT_NEAR(c.rope_theta, 1e4, 0);
    expect_parses(SMALL("llama", ",'rope_theta':5,'rope_parameters':{'rope_type':'llama3',"
                                 "'rope_theta':500000,'factor':8,'low_freq_factor':1,"
                                 "'high_freq_factor':4,'original_max_position_embeddings':8192}"),
                  &c);
    EXPECT_INT_EQ(c.rope_type, ROPE_LLAMA3);
    EXPECT_NEAR(c.rope_theta, 5e5, 0);
    EXPECT_NEAR(c.rope_high_freq_factor, 4, 0);
    EXPECT_INT_EQ(c.rope_original_max_position, 8192);
}

TEST(ModelConfig, EosIdsAreCollectedOnce) {
    struct model_config c;
    expect_parses(SMALL("llama", ",'eos_token_id':[5,7,5,-1,100,99]"), &c);
    ASSERT_INT_EQ(c.num_eos_token_ids, 3); /* 100 is outside the vocabulary */
    EXPECT_INT_EQ(c.eos_token_ids[0], 5);
    EXPECT_INT_EQ(c.eos_token_ids[1], 7);
    EXPECT_INT_EQ(c.eos_token_ids[2], 99);
    expect_parses(SMALL("llama", ",'eos_token_id':null,'bos_token_id':null"), &c);
    EXPECT_INT_EQ(c.num_eos_token_ids, 0);
    EXPECT_INT_EQ(c.bos_token_id, -1);
}

TEST(ModelConfig, StoredTypes) {
    struct model_config c;
    expect_parses(SMALL("llama", ",'torch_dtype':'float16'"), &c);
    EXPECT_INT_EQ(c.torch_dtype, DTYPE_F16);
    expect_parses(SMALL("llama", ",'dtype':'float32'"), &c);
    EXPECT_INT_EQ(c.torch_dtype, DTYPE_F32);
    expect_parses(SMALL("llama", ",'quantization_config':{'quant_method':'fp8',"
                                 "'weight_block_size':null,'activation_scheme':'static'}"),
                  &c);
    EXPECT_TRUE(c.fp8);
}

#define QUANT(more)          SMALL("llama", ",'quantization_config':{" more "}")
#define FP8(more)            QUANT("'quant_method':'fp8'," more)
#define TENSORS(more)        QUANT("'quant_method':'compressed-tensors','config_groups':{" more "}")
#define GROUP(name, weights) "'" name "':{'targets':['Linear'],'weights':{" weights "}}"
#define E4M3                 "'num_bits':8,'type':'float',"

TEST(ModelConfig, WhatFp8WeightsHaveScalesFor) {
    static const struct {
        const char *text;
        enum fp8_scaling scaling;
    } table[] = {
        {FP8("'activation_scheme':'dynamic'"), FP8_TENSOR},
        {FP8("'fmt':'e4m3','weight_block_size':[128,128]"), FP8_BLOCK},
        {TENSORS(GROUP("group_0", E4M3 "'strategy':'tensor'")), FP8_TENSOR},
        {TENSORS(GROUP("group_0", E4M3 "'strategy':'channel'")), FP8_ROW},
        {TENSORS(GROUP("group_0", E4M3 "'strategy':'block','block_structure':[128,128]")),
         FP8_BLOCK},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct model_config c;
        expect_parses(table[i].text, &c);
        EXPECT_TRUE(c.fp8);
        EXPECT_INT_EQ(c.fp8_scaling, table[i].scaling);
    }
}

/* inv_freq as printed by transformers 4.57.1, ROPE_INIT_FUNCTIONS, head_dim 16 and 32. */
TEST(ModelConfig, RopeFrequenciesAreThoseOfTransformers) {
    static const float plain[] = {1,
                                  0.316227764f,
                                  0.100000001f,
                                  0.0316227786f,
                                  0.00999999978f,
                                  0.00316227786f,
                                  0.00100000005f,
                                  0.000316227786f};
    static const float llama3[] = {1,
                                   0.440366626f,
                                   0.193922758f,
                                   0.0853971019f,
                                   0.0376060307f,
                                   0.0165604409f,
                                   0.00729266508f,
                                   0.00321144611f,
                                   0.000524846022f,
                                   7.78465546e-05f,
                                   3.42810235e-05f,
                                   1.50962178e-05f,
                                   6.64786967e-06f,
                                   2.92749974e-06f,
                                   1.28917316e-06f,
                                   5.6770881e-07f};
    struct model_config c;
    float f[MAX_HEAD_DIM / 2];
    expect_parses(SMALL("llama", ",'head_dim':16"), &c);
    model_config_inv_freq(&c, f);
    for (int i = 0; i < 8; i++)
        EXPECT_NEAR(f[i], plain[i], 1.2e-7 * (double)plain[i]); /* an ulp for the powf */
    expect_parses(SMALL("llama", ",'head_dim':16,'rope_scaling':{'type':'linear','factor':4}"), &c);
    model_config_inv_freq(&c, f);
    for (int i = 0; i < 8; i++)
        EXPECT_NEAR(f[i], plain[i] / 4, 1.2e-7 * (double)plain[i] / 4);
    expect_parses(SMALL("llama",
                        ",'head_dim':32,'rope_theta':500000,'rope_scaling':{'rope_type':'llama3',"
                        "'factor':8,'low_freq_factor':1,'high_freq_factor':4,"
                        "'original_max_position_embeddings':8192}"),
                  &c);
    model_config_inv_freq(&c, f);
    for (int i = 0; i < 16; i++)
        EXPECT_NEAR(f[i], llama3[i], 2.4e-7 * (double)llama3[i]);
}

TEST(ModelConfig, TheListOfFamiliesIsTheTable) {
    const struct model_family *f;
    char list[256] = "";
    for (size_t i = 0; (f = model_family_at(i)); i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "",
                 f->model_type);
    EXPECT_STR_EQ(model_config_families(), list);
}

/* ------------------------------------------------------------------------------------ bad input */

#define MOE(more)             SMALL("mixtral", more)
#define DENSE(more)           SMALL("llama", more)
#define SKY(more)             SMALL("skywork_moe", ",'num_experts':4" more)
#define ROPE(value)           DENSE(",'rope_scaling':" value)
#define SIZED(L, H, Hq, I, V) "{'model_type':'llama'," SIZES(L, H, Hq, I, V) "}"

static const struct {
    const char *text;
    int code;
    const char *message;
} bad[] = {
    {"", ERR_BAD_FILE, "not valid JSON"},
    {"{", ERR_BAD_FILE, "not valid JSON"},
    {"[]", ERR_BAD_FILE, "expected a JSON object, found a list"},
    {"3", ERR_BAD_FILE, "expected a JSON object, found 3"},
    {"{}", ERR_UNSUPPORTED, "model_type: null is not supported; known: skywork_moe, mixtral"},
    {"{'model_type':7}", ERR_UNSUPPORTED, "model_type: 7"},
    {"{'model_type':'gpt2'}", ERR_UNSUPPORTED, "model_type: \"gpt2\" is not supported"},
    {"{'model_type':'llama','model_type':'llama'}", ERR_BAD_FILE, "duplicate"},
    {"{'model_type':'llama'}", ERR_BAD_FILE, "num_hidden_layers: missing"},
    {SIZED(0, 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: 0 is not an integer from 1"},
    {SIZED(257, 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: 257"},
    {SIZED(-4, 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: -4"},
    {SIZED(4.0, 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: 4.0 is not an integer"},
    {SIZED('4', 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: \"4\" is not an integer"},
    {SIZED([4], 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: a list is not an integer"},
    {SIZED(null, 64, 8, 96, 100), ERR_BAD_FILE, "num_hidden_layers: missing"},
    {SIZED(4, 65537, 8, 96, 100), ERR_BAD_FILE, "hidden_size: 65537"},
    {SIZED(4, 9223372036854775807, 8, 96, 100), ERR_BAD_FILE, "hidden_size: 9223372036854775807"},
    {SIZED(4, 18446744073709551680, 8, 96, 100), ERR_BAD_FILE, "not valid JSON"},
    {SIZED(4, 64, 1025, 96, 100), ERR_BAD_FILE, "num_attention_heads: 1025"},
    {SIZED(4, 64, 7, 96, 100), ERR_BAD_FILE, "hidden_size: 64 is not a multiple of the 7"},
    {SIZED(4, 24, 8, 96, 100), ERR_BAD_FILE, "head_dim: 3 is odd"},
    {SIZED(4, 65536, 1, 96, 100), ERR_BAD_FILE, "hidden_size: 65536 makes heads of 65536"},
    {SIZED(4, 64, 8, 1048577, 100), ERR_BAD_FILE, "intermediate_size: 1048577"},
    {SIZED(4, 64, 8, 96, 4194305), ERR_BAD_FILE, "vocab_size: 4194305"},
    {DENSE(",'head_dim':7"), ERR_BAD_FILE, "head_dim: 7 is odd"},
    {DENSE(",'head_dim':0"), ERR_BAD_FILE, "head_dim: 0"},
    {DENSE(",'head_dim':2048"), ERR_BAD_FILE, "head_dim: 2048"},
    {DENSE(",'num_key_value_heads':3"), ERR_BAD_FILE, "num_key_value_heads: 3 does not divide"},
    {DENSE(",'num_key_value_heads':16"), ERR_BAD_FILE, "num_key_value_heads: 16"},
    {DENSE(",'num_key_value_heads':0"), ERR_BAD_FILE, "num_key_value_heads: 0"},
    {DENSE(",'hidden_act':'gelu'"), ERR_UNSUPPORTED, "hidden_act: \"gelu\" is not supported"},
    {DENSE(",'hidden_act':1"), ERR_UNSUPPORTED, "hidden_act: 1"},
    {DENSE(",'attention_bias':true"), ERR_UNSUPPORTED, "attention_bias: true"},
    {DENSE(",'attention_bias':1"), ERR_BAD_FILE, "attention_bias: 1 is not true or false"},
    {DENSE(",'mlp_bias':true"), ERR_UNSUPPORTED, "mlp_bias: true"},
    {DENSE(",'rms_norm_eps':0"), ERR_BAD_FILE, "rms_norm_eps: 0"},
    {DENSE(",'rms_norm_eps':-1e-5"), ERR_BAD_FILE, "rms_norm_eps: -1"},
    {DENSE(",'rms_norm_eps':'1e-5'"), ERR_BAD_FILE, "rms_norm_eps: \"1e-5\""},
    {DENSE(",'rope_theta':0"), ERR_BAD_FILE, "rope_theta: 0"},
    {DENSE(",'rope_theta':1e300"), ERR_BAD_FILE, "rope_theta: 1"},
    {DENSE(",'max_position_embeddings':0"), ERR_BAD_FILE, "max_position_embeddings: 0"},
    {DENSE(",'max_position_embeddings':1e9"), ERR_BAD_FILE, "max_position_embeddings: 1"},
    {DENSE(",'tie_word_embeddings':'no'"), ERR_BAD_FILE, "tie_word_embeddings: \"no\""},
    {DENSE(",'bos_token_id':100"), ERR_BAD_FILE, "bos_token_id: 100 is outside the vocabulary"},
    {DENSE(",'bos_token_id':-2"), ERR_BAD_FILE, "bos_token_id: -2"},
    {DENSE(",'eos_token_id':-2"), ERR_BAD_FILE, "eos_token_id: -2"},
    {DENSE(",'eos_token_id':'</s>'"), ERR_BAD_FILE, "eos_token_id: \"</s>\""},
    {DENSE(",'eos_token_id':[1,'x']"), ERR_BAD_FILE, "eos_token_id: \"x\""},
    {DENSE(",'eos_token_id':[1,2,3,4,5,6,7,8,9]"), ERR_UNSUPPORTED, "eos_token_id: more than 8"},
    {DENSE(",'torch_dtype':'float64'"), ERR_UNSUPPORTED, "torch_dtype: \"float64\""},
    {DENSE(",'partial_rotary_factor':0.5"), ERR_UNSUPPORTED, "below 1"},
    {DENSE(",'rotary_percent':0.25"), ERR_UNSUPPORTED, "rotary_percent: below 1"},
    {ROPE("'linear'"), ERR_BAD_FILE, "rope_scaling: \"linear\" is not an object"},
    {ROPE("{'type':'yarn','factor':4}"), ERR_UNSUPPORTED, "rope type \"yarn\" is not supported"},
    {ROPE("{'rope_type':'dynamic','factor':4}"), ERR_UNSUPPORTED, "rope type \"dynamic\""},
    {ROPE("{'rope_type':'longrope'}"), ERR_UNSUPPORTED, "rope type \"longrope\""},
    {ROPE("{'rope_type':['linear']}"), ERR_UNSUPPORTED, "rope type a list"},
    {ROPE("{'type':'linear'}"), ERR_BAD_FILE, "rope type linear needs a factor"},
    {ROPE("{'type':'linear','factor':0}"), ERR_BAD_FILE, "factor: 0"},
    {ROPE("{'type':'linear','factor':'4'}"), ERR_BAD_FILE, "factor: \"4\""},
    {ROPE("{'rope_type':'llama3','factor':8}"), ERR_BAD_FILE, "needs low_freq_factor"},
    {ROPE("{'rope_type':'llama3','factor':8,'low_freq_factor':4,'high_freq_factor':4,"
          "'original_max_position_embeddings':8192}"),
     ERR_BAD_FILE, "high_freq_factor: 4 is not above"},
    {ROPE("{'rope_type':'llama3','factor':8,'low_freq_factor':1,'high_freq_factor':4,"
          "'original_max_position_embeddings':0}"),
     ERR_BAD_FILE, "original_max_position_embeddings: 0"},
    {DENSE(",'rope_parameters':{'rope_type':'yarn'}"), ERR_UNSUPPORTED,
     "rope_parameters: rope type \"yarn\""},
    {DENSE(",'rope_parameters':{'full_attention':{'rope_type':'default'},'sliding_attention':{}}"),
     ERR_UNSUPPORTED, "a rope for each layer type"},
    {DENSE(",'rope_parameters':{'partial_rotary_factor':0.5}"), ERR_UNSUPPORTED,
     "partial_rotary_factor below 1"},
    {DENSE(",'quantization_config':{'quant_method':'gptq','bits':4}"), ERR_UNSUPPORTED,
     "quant_method \"gptq\" is not supported"},
    {DENSE(",'quantization_config':{'quant_method':'awq'}"), ERR_UNSUPPORTED, "\"awq\""},
    {DENSE(",'quantization_config':{'quant_method':'mxfp4'}"), ERR_UNSUPPORTED, "\"mxfp4\""},
    {DENSE(",'quantization_config':{'quant_method':'nvfp4'}"), ERR_UNSUPPORTED,
     "quant_method \"nvfp4\" is not supported (fp8 and compressed-tensors are, with F8_E4M3 weights "
     "and a scale for each tensor, row or block of 128 x 128)"},
    {DENSE(",'quantization_config':{}"), ERR_UNSUPPORTED, "quant_method null"},
    {DENSE(",'quantization_config':'fp8'"), ERR_UNSUPPORTED, "quant_method null"},
    {FP8("'fmt':'e5m2'"), ERR_UNSUPPORTED, "fmt \"e5m2\" is not supported (only e4m3)"},
    {FP8("'weight_block_size':[64,128]"), ERR_UNSUPPORTED,
     "weight_block_size [64, 128] is not supported (only [128, 128])"},
    {FP8("'weight_block_size':[128]"), ERR_UNSUPPORTED, "weight_block_size [128]"},
    {FP8("'weight_block_size':128"), ERR_UNSUPPORTED, "weight_block_size 128"},
    {TENSORS(""), ERR_BAD_FILE, "config_groups: missing or empty"},
    {TENSORS(GROUP("a", "'num_bits':4,'type':'int','strategy':'group'")), ERR_UNSUPPORTED,
     "a: weights of 4 bits of type \"int\" are not supported (only 8 bits of type float)"},
    {TENSORS(GROUP("a", "'num_bits':8,'type':'int','strategy':'channel'")), ERR_UNSUPPORTED,
     "a: weights of 8 bits of type \"int\""},
    {TENSORS(GROUP("a", "'num_bits':4,'type':'float','strategy':'tensor_group'")), ERR_UNSUPPORTED,
     "a: weights of 4 bits of type \"float\""},
    {TENSORS(GROUP("a", E4M3 "'strategy':'group'")), ERR_UNSUPPORTED,
     "a: strategy \"group\" is not supported (tensor, channel and block are)"},
    {TENSORS(GROUP("a", E4M3 "'strategy':'block'")), ERR_UNSUPPORTED, "block_structure null"},
    {TENSORS(GROUP("a", E4M3 "'strategy':'block','block_structure':[128,64]")), ERR_UNSUPPORTED,
     "block_structure [128, 64]"},
    {TENSORS(GROUP("a", E4M3 "'strategy':'block','block_structure':[128,128]") "," GROUP(
         "b", E4M3 "'strategy':'channel'")),
     ERR_UNSUPPORTED, "groups with block scales beside others"},
    {TENSORS(GROUP("a", "")), ERR_UNSUPPORTED, "a: weights of null bits of type null"},
    {QUANT("'quant_method':'compressed-tensors','sparsity_config':{'format':'sparse-24-bitmask'},"
           "'config_groups':{" GROUP("a", E4M3 "'strategy':'tensor'") "}"),
     ERR_UNSUPPORTED, "sparsity_config: format \"sparse-24-bitmask\" is not supported"},
    {MOE(",'num_local_experts':0"), ERR_BAD_FILE, "num_local_experts: 0"},
    {MOE(",'num_local_experts':1025"), ERR_BAD_FILE, "num_local_experts: 1025"},
    {MOE(",'num_local_experts':[8,8]"), ERR_BAD_FILE, "num_local_experts: a list"},
    {MOE(",'num_local_experts':[]"), ERR_BAD_FILE, "num_local_experts: a list"},
    {MOE(",'num_experts_per_tok':9"), ERR_BAD_FILE, "num_experts_per_tok: 9 is more than the 8"},
    {MOE(",'num_experts_per_tok':0"), ERR_BAD_FILE, "num_experts_per_tok: 0"},
    {MOE(",'sliding_window':0"), ERR_BAD_FILE, "sliding_window: 0"},
    {SMALL("qwen3_moe", ""), ERR_BAD_FILE, "moe_intermediate_size: missing"},
    {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'attention_bias':true"), ERR_UNSUPPORTED,
     "attention_bias: true"},
    {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'decoder_sparse_step':0"), ERR_BAD_FILE,
     "decoder_sparse_step: 0"},
    {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'mlp_only_layers':3"), ERR_BAD_FILE,
     "mlp_only_layers: 3 is not a list"},
    {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'mlp_only_layers':[-1]"), ERR_BAD_FILE,
     "mlp_only_layers: -1"},
    {SMALL("qwen3_moe", ",'moe_intermediate_size':6,'norm_topk_prob':1"), ERR_BAD_FILE,
     "norm_topk_prob: 1"},
    {SMALL("olmoe", ",'clip_qkv':-8"), ERR_BAD_FILE, "clip_qkv: -8"},
    {SMALL("qwen2", ",'num_key_value_heads':8,'use_sliding_window':true,'max_window_layers':3"),
     ERR_UNSUPPORTED, "1 of 4 layers sliding"},
    {SMALL("qwen2", ",'num_key_value_heads':8,'use_sliding_window':true,'layer_types':['x']"),
     ERR_BAD_FILE, "layer_types: expected a list of 4"},
    {SMALL("qwen2", ",'num_key_value_heads':8,'use_sliding_window':true,"
                    "'layer_types':['x','full_attention','full_attention','full_attention']"),
     ERR_UNSUPPORTED, "layer_types: \"x\""},
    {SMALL("skywork_moe", ""), ERR_BAD_FILE, "num_experts: missing"},
    {SKY(",'moe_2layer_gate':true"), ERR_UNSUPPORTED, "moe_2layer_gate: true"},
    {SKY(",'moe_use_skywork_gating':true"), ERR_UNSUPPORTED, "moe_use_skywork_gating: true"},
    {SKY(",'moe_feature_no_mul_topk':false"), ERR_UNSUPPORTED, "moe_feature_no_mul_topk: false"},
    {SKY(",'moe_expert_interval':2"), ERR_UNSUPPORTED, "moe_expert_interval: 2"},
    {SKY(",'moe_use_logits_norm':true,'moe_gate_norm_std':0"), ERR_BAD_FILE,
     "moe_gate_norm_std: 0"},
};

TEST(ModelConfig, RefusesEachBadConfigAndThenReadsAGoodOne) {
    static const struct model_config zero;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct model_config c;
        struct error e;
        if (parse(bad[i].text, &c, &e) != bad[i].code || e.code != bad[i].code)
            FAIL("%s: code %d: %s", bad[i].text, e.code, e.text);
        if (!strstr(e.text, bad[i].message) || strncmp(e.text, "config.json: ", 13) != 0)
            FAIL("%s: message \"%s\" lacks \"%s\"", bad[i].text, e.text, bad[i].message);
        EXPECT_MEM_EQ(&c, &zero, sizeof c);
        expect_parses(DENSE(""), &c);
    }
}

TEST(ModelConfig, ReportsAllProblemsOfAFileAtOnce) {
    struct model_config c;
    struct error e;
    EXPECT_INT_EQ(parse("{'model_type':'mixtral','num_hidden_layers':0,'hidden_act':'relu',"
                        "'hidden_size':64,'num_attention_heads':8,'intermediate_size':'wide',"
                        "'num_experts_per_tok':99,'rope_scaling':{'type':'yarn'}}",
                        &c, &e),
                  ERR_BAD_FILE);
    EXPECT_INT_EQ(e.problems, 6);
    EXPECT_TRUE(strstr(e.text, "num_hidden_layers: 0") && strstr(e.text, "hidden_act: \"relu\"") &&
                strstr(e.text, "intermediate_size: \"wide\"") &&
                strstr(e.text, "num_experts_per_tok: 99") && strstr(e.text, "yarn") &&
                strstr(e.text, "vocab_size: missing"));
}

TEST(ModelConfig, AnErrorStructIsOptional) {
    struct model_config c;
    EXPECT_INT_EQ(model_config_parse("{}", 2, "x", &c, NULL), ERR_UNSUPPORTED);
    EXPECT_INT_EQ(model_config_parse("{", 1, "x", &c, NULL), ERR_BAD_FILE);
    EXPECT_INT_EQ(model_config_load("/nonexistent", &c, NULL), ERR_NOT_FOUND);
}

/* ---------------------------------------------------------------------------------------- files */

static void write_text(const char *dir, const char *name, const char *text) {
    char json[4096];
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        json[i] = text[i] == '\'' ? '"' : text[i];
    write_file(in_folder(dir, name), json, n);
}

TEST(ModelConfig, LoadMergesTheEosIdsOfGenerationConfig) {
    const char *dir = scratch_folder("model_config");
    struct model_config c;
    struct error e = {0};
    EXPECT_INT_EQ(model_config_load(dir, &c, &e), ERR_NOT_FOUND);
    EXPECT_TRUE(strstr(e.text, "/model_config/config.json") != NULL);
    write_text(dir, "config.json", DENSE(",'eos_token_id':5"));
    ASSERT_INT_EQ(model_config_load(dir, &c, &e), 0);
    EXPECT_INT_EQ(c.num_eos_token_ids, 1);
    write_text(dir, "generation_config.json", "{'eos_token_id':[5,9],'temperature':0.6}");
    ASSERT_INT_EQ(model_config_load(dir, &c, &e), 0);
    ASSERT_INT_EQ(c.num_eos_token_ids, 2);
    EXPECT_INT_EQ(c.eos_token_ids[1], 9);

    static const char *const broken[] = {"{'eos_token_id':'x'}", "[]", "{"};
    for (size_t i = 0; i < 3; i++) {
        memset(&e, 0, sizeof e);
        write_text(dir, "generation_config.json", broken[i]);
        EXPECT_INT_EQ(model_config_load(dir, &c, &e), ERR_BAD_FILE);
        EXPECT_TRUE(strstr(e.text, "generation_config.json: ") != NULL);
    }
    write_text(dir, "generation_config.json", "{}");
    EXPECT_INT_EQ(model_config_load(dir, &c, &e), 0);
}
