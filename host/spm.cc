/* spm: the C functions of spm.h over sentencepiece::SentencePieceProcessor. */
#include "host/spm.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "host/mem.h"

struct spm {
    sentencepiece::SentencePieceProcessor processor;
    bool strips = true;
};

namespace {

/* Reads the protocol-buffer wire format just far enough to find two flags of the model. */
struct Wire {
    const unsigned char *p, *end;

    bool varint(uint64_t *value) {
        *value = 0;
        for (int shift = 0; p < end && shift < 64; shift += 7) {
            unsigned char b = *p++;
            *value |= (uint64_t)(b & 0x7F) << shift;
            if (b < 0x80)
                return true;
        }
        return false;
    }

    /* Reads one field: its number, and its value (varint) or its bytes (length-delimited). */
    bool field(uint64_t *number, uint64_t *value, Wire *bytes) {
        uint64_t tag, len;
        if (!varint(&tag))
            return false;
        *number = tag >> 3;
        *bytes = Wire{p, p};
        *value = 0;
        switch (tag & 7) {
        case 0:
            return varint(value);
        case 1:
            len = 8;
            break;
        case 2:
            if (!varint(&len))
                return false;
            break;
        case 5:
            len = 4;
            break;
        default:
            return false;
        }
        if (len > (uint64_t)(end - p))
            return false;
        *bytes = Wire{p, p + len};
        p += len;
        return true;
    }
};

/* ModelProto.normalizer_spec (3) has add_dummy_prefix (3) and remove_extra_whitespaces (4), both
 * true by default. */
bool strips_leading_space(const char *data, size_t len) {
    bool add_dummy_prefix = true, remove_extra_whitespaces = true;
    const auto *bytes = reinterpret_cast<const unsigned char *>(data);
    Wire model{bytes, bytes + len}, inner{nullptr, nullptr}, unused{nullptr, nullptr};
    uint64_t number, value;
    while (model.p < model.end && model.field(&number, &value, &inner))
        while (number == 3 && inner.p < inner.end) {
            uint64_t key;
            if (!inner.field(&key, &value, &unused))
                break;
            if (key == 3)
                add_dummy_prefix = value != 0;
            if (key == 4)
                remove_extra_whitespaces = value != 0;
        }
    return add_dummy_prefix || remove_extra_whitespaces;
}

} // namespace

void spm_set_new_handler(void) {
    std::set_new_handler([] { mem_exhausted(0); });
}

int spm_load(const char *data, size_t len, bool no_prefix, const char *where, struct spm **out,
             struct error *error) {
    *out = nullptr;
    try {
        auto s = std::make_unique<spm>();
        std::string model(data, len);
        s->strips = strips_leading_space(data, len);
        /* Fields of a message that come again are merged: normalizer_spec.add_dummy_prefix = false.
         */
        if (no_prefix)
            model.append("\x1A\x02\x18\x00", 4);
        auto status = s->processor.LoadFromSerializedProto(model);
        if (!status.ok())
            return error_set(error, ERR_BAD_FILE, "%s: not a SentencePiece model: %s", where,
                             status.ToString().c_str());
        *out = s.release();
        return 0;
    } catch (const std::exception &e) {
        return error_set(error, ERR_BAD_FILE, "%s: not a SentencePiece model: %s", where, e.what());
    }
}

void spm_free(struct spm *s) {
    delete s;
}

int32_t spm_vocab_size(const struct spm *s) {
    return s->processor.GetPieceSize();
}

int32_t spm_unk(const struct spm *s) {
    return s->processor.unk_id();
}

int32_t spm_bos(const struct spm *s) {
    return s->processor.bos_id();
}

int32_t spm_eos(const struct spm *s) {
    return s->processor.eos_id();
}

bool spm_strips_leading_space(const struct spm *s) {
    return s->strips;
}

const char *spm_piece(const struct spm *s, int32_t id, size_t *len) {
    const std::string &piece = s->processor.IdToPiece(id);
    *len = piece.size();
    return piece.data();
}

int32_t spm_piece_id(const struct spm *s, const char *piece, size_t len) {
    std::string_view wanted(piece, len);
    int32_t id = s->processor.PieceToId(absl::string_view(piece, len));
    bool found =
        id >= 0 && id < s->processor.GetPieceSize() && s->processor.IdToPiece(id) == wanted;
    return found ? id : -1; /* the library answers unk for what it does not have */
}

enum spm_type spm_type(const struct spm *s, int32_t id) {
    const auto &p = s->processor;
    return p.IsUnknown(id)   ? SPM_UNKNOWN
           : p.IsControl(id) ? SPM_CONTROL
           : p.IsUnused(id)  ? SPM_UNUSED
           : p.IsByte(id)    ? SPM_BYTE
                             : SPM_NORMAL;
}

void spm_encode(const struct spm *s, const char *text, size_t len, struct token_list *out) {
    try {
        std::vector<int> ids;
        if (!s->processor.Encode(absl::string_view(text, len), &ids).ok())
            return;
        for (int id : ids)
            token_list_push(out, id);
    } catch (const std::exception &) {
        return; /* out of memory within the library */
    }
}
