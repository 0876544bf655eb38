/* demo_model: where the bundled model is, for when no --model is given. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

/* The folder that the build named, else beside an installed binary (../share/moeserve/demo-moe),
 * else beside a build tree (../configs/demo-moe). To be freed; NULL when it is nowhere. */
char *demo_model_find(void);

#ifdef __cplusplus
}
#endif
